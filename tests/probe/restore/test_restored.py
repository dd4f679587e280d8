"""What a pass modifies is restored: the same objects, with the same bits, also when the pass raises."""

from __future__ import annotations

import random
import re
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.probe.restore.restored import restored

SHARED = torch.Generator().manual_seed(9)


class Everything(nn.Module):
    """Modifies, in one forward, whatever a module can modify of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("written", torch.tensor([1.0, float("nan")]))
        self.register_buffer("assigned", torch.zeros(2))
        self.register_buffer("expanded", torch.zeros(1).expand(4))
        self.register_buffer("resized", torch.zeros(2))
        self.register_buffer("shrunk", torch.arange(3.0))
        self.register_buffer("counter", torch.tensor(3))
        self.plain, self.calls = torch.zeros(2), 0
        self.listed: list[Any] = [torch.zeros(2)]
        self.named: dict[str, Any] = {"a": 1, "b": 2, "deep": [{"cache": torch.zeros(2)}]}
        self.queue: deque[int] = deque([1], maxlen=2)
        self.known = {1}

    def forward(self, x: Tensor) -> Tensor:
        self.written.add_(1)
        self.assigned = self.assigned + 1
        self.expanded[:1].add_(1)
        self.resized.data = torch.ones(5)
        self.shrunk.resize_(1)
        self.counter += 1
        self.plain.add_(1)
        self.calls += 1
        self.listed[0].add_(1)
        self.listed.append(x)
        self.named["deep"][0]["cache"].add_(1)
        self.named["deep"][0]["more"] = x
        self.named["c"] = 3
        del self.named["a"]
        self.queue.append(7)
        self.queue.append(8)
        self.known.add(2)
        self.cached = x
        self.register_buffer("new", torch.ones(1))
        self.linear.register_forward_hook(lambda *_: None)
        self.linear.weight.register_hook(lambda gradient: gradient)
        self.linear.bias.requires_grad_(False)
        self.extra = nn.Linear(1, 1)
        self.norm.eval()
        return self.norm(self.linear(x)).sum()


def _picture(model: Everything) -> dict[str, Any]:
    tensors = [*model.parameters(), *model.buffers(), model.plain, model.listed[0]]
    return {
        "bits": [tensor.detach().clone().view(-1).numpy().tobytes() for tensor in tensors],
        "shapes": [tensor.shape for tensor in tensors],
        "memory": [tensor.data_ptr() for tensor in tensors],
        "objects": [id(tensor) for tensor in tensors],
        "versions": [tensor._version for tensor in tensors],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "names": [name for name, _ in (*model.named_modules(), *model.named_buffers())],
        "attributes": sorted(vars(model)),
        "calls": model.calls,
        "listed": len(model.listed),
        "named": list(model.named),
        "deep": [(name, value.tolist()) for name, value in model.named["deep"][0].items()],
        "queue": list(model.queue),
        "known": set(model.known),
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "tensor hooks": len(model.linear.weight._backward_hooks or {}),
        "gradients": [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
    }


def test_a_module_that_modifies_all_of_itself_is_restored() -> None:
    model, x = Everything(), torch.randn(4, 3)
    model.linear(x).sum().backward()
    before = _picture(model)
    with restored([model]):
        model(x).backward()
        inside = _picture(model)
    assert _picture(model) == before
    unchanged = {key for key, value in inside.items() if value == before[key]}
    assert unchanged == set()


def _stop(_: object) -> None:
    raise KeyError("stop")


def test_it_is_restored_when_the_pass_raises_and_the_error_propagates() -> None:
    model = Everything()
    before = _picture(model)
    with pytest.raises(KeyError, match="stop"), restored([model]):
        _stop(model(torch.randn(4, 3)))
    assert _picture(model) == before


def test_a_module_that_is_only_called_is_restored_too() -> None:
    hidden = [Everything() for _ in range(2_000)]  # too many to walk through
    before = _picture(hidden[1_500])
    with restored(function=lambda: hidden):
        hidden[1_500](torch.randn(4, 3))
    assert _picture(hidden[1_500]) == before
    assert not torch.nn.modules.module._global_forward_pre_hooks


class Counts(nn.Module):
    """Multiplies by a buffer, which autograd saves, and then writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.ones(2))

    def forward(self) -> Tensor:
        product = self.weight * self.count
        self.count.add_(1)
        return product.sum()


def test_a_pending_backward_accepts_buffers_that_were_restored() -> None:
    model = Counts()
    pending = (model.weight * model.count).sum()
    with restored([model]):
        model()
    pending.backward()
    assert torch.equal(model.weight.grad, torch.ones(2))
    pending = (model.weight * model.count).sum()
    model()
    model.count.sub_(1)  # the values are back, the version counter is not
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pending.backward()


def test_the_global_random_generators_are_restored() -> None:
    def draw() -> list[float]:
        return [float(torch.rand(())), random.random(), float(np.random.rand()), random.gauss(), np.random.normal()]

    with restored():
        first = draw()
    with pytest.raises(KeyError), restored():
        _stop(draw())
    assert draw() == first
    assert draw() != first


def _module_with(generator: Any) -> nn.Module:
    module = nn.Identity()
    module.generator = generator
    return module


class _Holder:
    """Holds a generator as an attribute, and draws from it in a method."""

    def __init__(self, generator: Any) -> None:
        self.inside = {"deep": [SimpleNamespace(generator=generator)]}

    def draw(self) -> Tensor:
        return torch.rand(3, generator=self.inside["deep"][0].generator)


WAYS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "closure": lambda g: lambda: torch.rand(3, generator=g),
    "default": lambda g: lambda generator=g: torch.rand(3, generator=generator),
    "partial": lambda g: partial(torch.rand, 3, generator=g),
    "method": lambda g: _Holder(g).draw,
    "method of an object": lambda g: (lambda holder: lambda: holder.draw())(_Holder(g)),
    "module": lambda g: (lambda module: lambda: torch.rand(3, generator=module.generator))(_module_with(g)),
    "reseeded": lambda g: lambda: torch.rand(3, generator=g.manual_seed(1)),
    "another function": lambda g: (lambda inner: lambda: inner())(lambda: torch.rand(3, generator=g)),
    "hidden": lambda g: (lambda many: lambda: torch.rand(3, generator=many[1_500]))([g] * 2_000),
    "in place": lambda g: (lambda many: lambda: torch.zeros(3).uniform_(generator=many[0]))([g] * 2_000),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_generator_is_found_wherever_the_function_has_it(way: str) -> None:
    generator = torch.Generator().manual_seed(4)
    function, before = WAYS[way](generator), generator.get_state()
    with restored(function=function):
        function()
        assert not torch.equal(generator.get_state(), before)
    assert torch.equal(generator.get_state(), before)


def test_a_global_generator_is_found() -> None:
    before = SHARED.get_state()
    with restored(function=_draw_from_the_global_generator):
        _draw_from_the_global_generator()
        assert not torch.equal(SHARED.get_state(), before)
    assert torch.equal(SHARED.get_state(), before)


def _draw_from_the_global_generator() -> Tensor:
    return torch.rand(3, generator=SHARED)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: torch.Generator().manual_seed(0), lambda g: torch.rand((), generator=g).item()),
        (lambda: np.random.default_rng(0), lambda g: g.normal()),
        (lambda: np.random.Generator(np.random.MT19937(0)), lambda g: g.normal()),
        (lambda: np.random.RandomState(0), lambda g: g.normal()),
        (lambda: random.Random(0), lambda g: g.gauss(0, 1)),
    ],
)
def test_every_kind_of_generator_is_restored(listed: bool, make: Any, draw: Any) -> None:
    generator = make()
    with restored(generators=[generator] if listed else [], function=None if listed else lambda: generator):
        first = draw(generator)
    assert draw(generator) == first
    assert draw(generator) != first


def test_what_is_not_a_generator_raises_before_anything_runs() -> None:
    says = re.escape("generators: int is not a random generator. List torch.Generator,")
    with pytest.raises(TypeError, match=says), restored(generators=[3]):
        raise AssertionError("unreachable")


def test_gradients_are_none_meanwhile_and_restored_as_the_same_objects() -> None:
    layer = nn.Embedding(5, 2, sparse=True)
    free = torch.ones(2, requires_grad=True)
    (layer(torch.tensor([1])) * free).sum().backward()
    mine, its = layer.weight.grad, free.grad
    bits = mine.to_dense().clone(), its.clone()
    with restored([layer], tensors=[free]):
        assert layer.weight.grad is None is free.grad
        (layer(torch.tensor([2])) * free).sum().backward()
        assert free.grad is not None
    assert layer.weight.grad is mine
    assert free.grad is its
    assert torch.equal(mine.to_dense(), bits[0])
    assert torch.equal(its, bits[1])


def test_a_parameter_that_the_pass_itself_writes_to_is_an_error() -> None:
    class Writes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.mul_(0.5)
            return super().forward(x)

    says = "a parameter of shape (1, 2) was written to by the pass itself, which changed the model. Make it a buffer"
    with pytest.raises(fl.ProbeError, match=re.escape(says)), restored([model := Writes(2, 1)]):
        model(torch.ones(1, 2))


def test_a_table_that_its_own_lookup_rescales_is_restored() -> None:
    table = nn.Embedding(5, 2, max_norm=0.1)
    table.weight.grad = torch.ones(5, 2)
    before = table.weight.detach().clone()
    with restored([table]):
        assert table.weight.grad is None
        table(torch.arange(5))
        assert not torch.equal(table.weight, before)
    assert torch.equal(table.weight, before)


def test_a_lazy_module_raises() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.LazyLinear(2))
    says = re.escape("a lazy module has no shape yet. Run one batch through the model first.")
    with pytest.raises(fl.ProbeError, match=says), restored([model]):
        raise AssertionError("unreachable")


def test_buffers_in_memory_that_cannot_be_written_stay_readable(tmp_path: Any) -> None:
    np.save(tmp_path / "table.npy", np.ones((3, 2), dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that numpy's memory is read-only
        table = torch.from_numpy(np.load(tmp_path / "table.npy", mmap_mode="r"))
    module = nn.Module()
    module.register_buffer("table", table)
    with torch.inference_mode():
        module.register_buffer("inference", torch.ones(2))
    module.register_buffer("meta", torch.ones(2, device="meta"))
    module.register_buffer("sparse", torch.eye(3).to_sparse())
    with restored([module]):
        with torch.inference_mode():
            module.inference.add_(1)
        module.sparse.mul_(2)
    assert torch.equal(module.table, torch.ones(3, 2))
    assert torch.equal(module.inference, torch.ones(2))
    assert torch.equal(module.sparse.to_dense(), torch.eye(3))


def test_nested_blocks_each_restore_their_own_state() -> None:
    model, x = nn.BatchNorm1d(3), torch.randn(4, 3)
    model(x)
    outer = model.running_mean.clone()
    with restored([model]):
        model(x + 1)
        inner = model.running_mean.clone()
        with restored([model]):
            model(x + 2)
            assert not torch.equal(model.running_mean, inner)
        assert torch.equal(model.running_mean, inner)
    assert torch.equal(model.running_mean, outer)


def test_a_module_that_a_plan_changes_in_the_pass_is_plain_again() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    before, weight = layer(x), layer.weight
    with restored([layer]):
        fl.train_only(layer, {"weight": fl.rows([1])})
        assert type(layer) is not nn.Linear
        assert layer.weight is not weight
    assert type(layer) is nn.Linear
    assert layer.weight is weight
    assert weight.requires_grad
    assert list(dict(layer.named_parameters())) == ["weight", "bias"]
    assert torch.equal(layer(x), before)
