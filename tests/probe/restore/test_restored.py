"""What a pass modifies is restored: the same objects, with the same bits, also when the pass raises."""

from __future__ import annotations

import random
import re
import threading
import warnings
from collections import Counter, deque
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
        return [float(torch.rand(())), random.random(), float(np.random.rand()), random.gauss(0, 1), np.random.normal()]

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


class Writes(nn.Module):
    """Writes to what it learns, in one of many ways."""

    def __init__(self, write: Callable[[nn.Parameter], object]) -> None:
        super().__init__()
        self.weight, self.write = nn.Parameter(torch.tensor([[3.0, -4.0]])), write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.weight)
        return (x @ self.weight.t()).sum()


@torch.no_grad()
def _in_place(weight: nn.Parameter) -> None:
    weight.mul_(0.5)


@torch.no_grad()
def _through_a_view(weight: nn.Parameter) -> None:
    weight[0, 1:].fill_(7)


@torch.no_grad()
def _into_out(weight: nn.Parameter) -> None:
    torch.add(weight, 1, out=weight)


@torch.no_grad()
def _foreach(weight: nn.Parameter) -> None:
    torch._foreach_mul_([weight], 0.5)


def _replaced_data(weight: nn.Parameter) -> None:
    weight.data = torch.nn.functional.normalize(weight.data)


def _resized(weight: nn.Parameter) -> None:
    weight.data = torch.ones(2, 2)


def _numpy(weight: nn.Parameter) -> None:
    weight.detach().numpy()[:] = 5


@torch.no_grad()
def _clamped_then_read(weight: nn.Parameter) -> None:
    weight.clamp_(-1, 1)
    weight.data.add_(weight.data)


def _renormalised(weight: nn.Parameter) -> None:
    torch.nn.functional.embedding(torch.tensor([0]), weight, max_norm=0.1)


WRITES = {
    "in place": _in_place,
    "a view": _through_a_view,
    "out=": _into_out,
    "foreach": _foreach,
    ".data in place": lambda weight: weight.data.mul_(0.9),
    ".data of a view": lambda weight: weight.data[0].zero_(),
    "detach": lambda weight: weight.detach().add_(1),
    ".data replaced": _replaced_data,
    ".data of another shape": _resized,
    "numpy": _numpy,
    "init": lambda weight: nn.init.ones_(weight),
    "setitem": lambda weight: weight.data.__setitem__(0, 2.0),
    "twice": _clamped_then_read,
    "max_norm": _renormalised,
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("way", WRITES)
def test_a_parameter_that_the_pass_itself_writes_to_is_restored(way: str, frozen: bool) -> None:
    model = Writes(WRITES[way])
    model.weight.requires_grad_(not frozen)
    pending = model.weight.square().sum()  # a graph of the user's, whose backward compares version counters
    values, address, version = model.weight.detach().clone(), model.weight.data_ptr(), model.weight._version
    with restored([model]):
        model.write(model.weight)
        assert model.weight.shape != values.shape or not torch.equal(model.weight, values)
    assert torch.equal(model.weight, values)
    assert (model.weight.data_ptr(), model.weight._version) == (address, version)
    if not frozen:
        pending.backward()
        assert torch.equal(model.weight.grad, 2 * values)


@pytest.mark.parametrize("way", [way for way in WRITES if way != ".data of another shape"])
@pytest.mark.parametrize("call", ["gradients", "trial_step", "explain"])
def test_no_look_leaves_what_the_pass_wrote(way: str, call: str) -> None:
    model, teacher = Writes(WRITES[way]), nn.Linear(2, 2).requires_grad_(False)
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(1, 2)
    teacher_weight, weight = teacher.weight.clone(), model.weight.detach().clone()

    def loss_fn() -> Tensor:
        teacher.weight.data = 0.9 * teacher.weight.data + 0.1
        return model(teacher(x))

    if call == "gradients":
        fl.gradients(loss_fn, [model.weight])
    else:
        getattr(fl, call)(model, loss_fn, optimizer)
    assert torch.equal(model.weight, weight)
    assert torch.equal(teacher.weight, teacher_weight)
    loss_fn()
    assert not torch.equal(teacher.weight, teacher_weight)


def test_a_module_that_is_not_found_is_restored_where_it_is_written_before_it_is_called() -> None:
    many = [nn.Linear(1, 1) for _ in range(2_000)]  # too many to walk through
    before = many[1_500].weight.detach().clone()
    with restored(function=lambda: many):
        many[1_500].weight.data.add_(1)
        nn.init.constant_(many[1_400].weight, 3.0)
        assert not torch.equal(many[1_500].weight, before)
    assert torch.equal(many[1_500].weight, before)
    assert not torch.equal(many[1_400].weight, torch.tensor([[3.0]]))


class Slots:
    __slots__ = ("cache", "count", "unset")

    def __init__(self) -> None:
        self.cache, self.count = torch.zeros(2), 0


class Unusual(nn.Module):
    """Holds state in ways of its own: all of it changes in a forward."""

    generator = np.random.default_rng(0)
    shared: list[Any] = []  # noqa: RUF012  that is what people write

    def __init__(self) -> None:
        super().__init__()
        self.table, self.raw = np.zeros(3), bytearray(b"abc")
        self.seen: Counter[str] = Counter({"a": 2, "b": -1})
        self.pair = torch.zeros(2), [torch.zeros(2)]
        self.slots = Slots()

    def forward(self, x: Tensor) -> Tensor:
        self.table[1] += 1
        self.raw[0:1] = b"xyz"
        self.seen.update("ac")
        self.pair[0].add_(1)
        self.pair[1][0].add_(1)
        self.slots.cache.add_(1)
        self.slots.count += 1
        self.slots.unset = x
        self.shared.append(1)
        return x * self.generator.normal()


def _unusual_picture(model: Unusual) -> list[Any]:
    slots = model.slots
    tensors = [model.pair[0], model.pair[1][0], slots.cache]
    return [
        *(tensor.tolist() for tensor in tensors),
        *(model.table.tolist(), bytes(model.raw), dict(model.seen), list(model.shared)),
        *(slots.count, hasattr(slots, "unset"), str(model.generator.bit_generator.state)),
    ]


def test_state_in_arrays_tuples_slots_counters_and_classes_is_restored() -> None:
    model = Unusual()
    before = _unusual_picture(model)
    with restored([model]):
        model(torch.ones(1))
        inside = _unusual_picture(model)
    assert _unusual_picture(model) == before
    assert all(now != then for now, then in zip(inside, before, strict=True))


def test_a_dictionary_is_never_empty_while_it_is_restored() -> None:
    class Live(dict[str, int]):
        def clear(self) -> None:
            raise AssertionError("another thread may be reading it")

    live = Live(a=1, b=2)
    with restored(optimizers=[SimpleNamespace(param_groups=[], live=live)]):
        live["c"], live["b"] = 3, 4
        del live["a"]
    assert list(live.items()) == [("a", 1), ("b", 2)]


def test_a_tensor_of_a_wrapper_class_is_restored() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    module = nn.Module()
    parts = torch.ones(2), torch.zeros(2)
    module.weight = nn.Parameter(TwoTensor(*parts), requires_grad=False)
    module.register_buffer("scale", TwoTensor(*(part.clone() for part in parts)))
    with restored([module]):
        module.scale.add_(1)
        module.weight.data.add_(1)
        assert torch.equal(parts[0], torch.full((2,), 2.0))
    assert torch.equal(parts[0], torch.ones(2))
    assert torch.equal(module.scale.a, torch.ones(2))
    assert torch.equal(module.scale.b, torch.zeros(2))


def test_what_another_thread_trains_meanwhile_is_not_rolled_back() -> None:
    def train(look: bool) -> list[Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        optimizer, other = torch.optim.SGD(model.parameters(), lr=0.1), nn.Linear(2, 1)
        inside, done = threading.Event(), threading.Event()

        def slow() -> Tensor:
            inside.set()
            assert done.wait(20)
            return other(torch.ones(1, 2)).sum()

        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.extend(fl.gradients(slow, [other.weight])))
        if look:
            thread.start()
            assert inside.wait(20)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 16).view(8, 2)).square().sum().backward()
            optimizer.step()
        done.set()
        if look:
            thread.join(20)
            assert torch.equal(found[0], torch.ones(1, 2))
        return [*map(torch.Tensor.tolist, model.state_dict().values()), model[0].weight.grad is None]

    assert train(look=True) == train(look=False)


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
