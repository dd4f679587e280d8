"""Gradients equal those of plain autograd, and computing them has no side effects."""

from __future__ import annotations

import copy
import gc
import re
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import frostline as fl

IDS = torch.tensor([[1, 2, 3], [4, 1, 0]])


class Net(nn.Module):
    """A table, a normalisation, dropout and a head."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4, sparse=sparse)
        self.same = nn.Identity()
        self.norm = nn.BatchNorm1d(3)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)  # (B, T, D)
        hidden = self.same(hidden) + hidden
        hidden = self.drop(self.relu(self.norm(hidden)))
        return self.head(self.lstm(hidden)[0]).pow(2).mean()


def state(model: nn.Module) -> dict[str, object]:
    """Bits and identities that `fl.gradients` must not change."""
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "versions": [tensor._version for tensor in (*model.parameters(), *model.buffers())],
        "tensors": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "gradients": [id(parameter.grad) for parameter in model.parameters()],
        "gradient bits": [None if p.grad is None else p.grad.to_dense().clone() for p in model.parameters()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def same(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def plain(model: nn.Module, wrt: Callable[[nn.Module], list[Tensor]]) -> list[Tensor]:
    """What autograd gives on a copy, with the random numbers that come next."""
    with torch.random.fork_rng(devices=[]):
        twin = copy.deepcopy(model)
        return list(torch.autograd.grad(twin(IDS), wrt(twin)))


def test_the_values_are_those_of_autograd_bit_for_bit_in_the_order_of_wrt() -> None:
    model = Net()
    model(IDS).backward()  # a `.grad` that must stay
    before = state(model)
    expected = plain(model, lambda m: [m.head.weight, m.embed.weight, m.norm.bias])
    found = fl.gradients(lambda: model(IDS), [model.head.weight, model.embed.weight, model.norm.bias])
    assert isinstance(found, tuple)
    assert all(map(torch.equal, found, expected))
    assert all((gradient != 0).any() and not gradient.requires_grad for gradient in found)
    assert same(state(model), before)
    model(IDS)
    assert not same(state(model), before)  # a plain pass would have been seen


def test_dropout_masks_are_those_of_the_next_step_and_new_ones_in_a_fork_that_is_seeded() -> None:
    model = Net()
    wrt, loss = [model.head.weight, model.embed.weight], lambda: model(IDS)
    next_masks, again = fl.gradients(loss, wrt), fl.gradients(loss, wrt)
    new_masks = []
    for seed in range(3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            new_masks.append(fl.gradients(loss, wrt))
    loss().backward()
    assert torch.equal(next_masks[0], model.head.weight.grad)
    assert torch.equal(next_masks[1], model.embed.weight.grad)
    assert all(map(torch.equal, next_masks, again))
    embedding_gradients = [gradients[1] for gradients in (next_masks, *new_masks)]
    for index, gradient in enumerate(embedding_gradients):
        assert not any(torch.equal(gradient, earlier) for earlier in embedding_gradients[:index])


def test_a_module_means_its_output_wherever_that_is_used() -> None:
    model = Net()
    names, outputs, twin = ("embed", "same", "norm"), {}, copy.deepcopy(model)
    for name in names:

        def hook(module: nn.Module, inputs: object, output: Tensor, name: str = name) -> Tensor:
            outputs[name] = output * 1
            return outputs[name] * 1  # what follows writes in place

        getattr(twin, name).register_forward_hook(hook)
    with torch.random.fork_rng(devices=[]):
        loss = twin(IDS)
    expected = torch.autograd.grad(loss, [outputs[name] for name in names])
    before = state(model)
    found = fl.gradients(lambda: model(IDS), [model.embed, model.same, model.norm])
    assert all(map(torch.equal, found, expected))
    assert torch.equal(found[0], 2 * found[1])  # the identity is one of the two ways on from the table
    assert (found[2] != 0).any()
    assert same(state(model), before)


def test_a_frozen_modules_output_has_a_gradient_although_nothing_before_it_learns() -> None:
    model, frozen = Net(), Net()
    frozen.embed.requires_grad_(False)
    (expected,) = fl.gradients(lambda: model(IDS), [model.embed])
    before = state(frozen)
    (found,) = fl.gradients(lambda: frozen(IDS), [frozen.embed])
    assert torch.equal(found, expected)
    assert same(state(frozen), before)

    def looked_up_without_grad() -> Tensor:
        with torch.no_grad():
            vectors = frozen.embed(IDS)
        return frozen.head(vectors).sum()

    (found,) = fl.gradients(looked_up_without_grad, [frozen.embed])
    assert torch.equal(found, frozen.head.weight.detach().expand(2, 3, 4))


def test_tensors_that_do_not_require_a_gradient_have_one_during_the_pass() -> None:
    model, x = Net(), torch.randn(2, 3)
    model.head.requires_grad_(False)
    frozen, weights = fl.gradients(lambda: model(IDS) * x.square().sum(), [model.head.weight, x])
    with torch.random.fork_rng(devices=[]):
        loss = model(IDS).detach()
    assert torch.allclose(weights, 2 * x * loss)
    assert (frozen != 0).any()
    assert not x.requires_grad
    assert not model.head.weight.requires_grad
    assert x.grad is None is model.head.weight.grad


@pytest.mark.parametrize("sparse", [False, True])
def test_a_partial_tensor_means_its_learned_part(sparse: bool) -> None:
    model = Net(sparse)
    (dense,) = plain(model, lambda m: [m.embed.weight])
    fl.train_only(model, {"*": fl.everything, "embed.weight": fl.rows([4, 1, 5])})
    before = state(model)
    found, again = fl.gradients(lambda: model(IDS), [model.embed.weight, model.embed.weight_learned])
    assert found.is_sparse == sparse
    assert found.shape == (3, 4)
    assert torch.equal(found.to_dense(), dense.to_dense()[[4, 1, 5]])
    assert torch.equal(found.to_dense(), again.to_dense())
    assert same(state(model), before)
    frozen = dict(model.named_parameters())["embed.weight"]
    with pytest.raises(fl.ProbeError, match=r"wrt\[0\] .*: frozen by a plan, so it gets no gradient. Pass its module"):
        fl.gradients(lambda: model(IDS), [frozen])
    assert same(state(model), before)


def test_entries_of_a_partial_tensor_come_as_a_vector() -> None:
    model, mask = Net(), torch.tensor([[True, False, True, False]])
    (dense,) = plain(model, lambda m: [m.head.weight])
    fl.train_only(model, {"head.weight": fl.entries(mask)})
    (found,) = fl.gradients(lambda: model(IDS), [model.head.weight])
    assert torch.equal(found, dense[mask])


def test_a_step_in_progress_continues_although_its_own_loss_was_differentiated() -> None:
    model = Net()
    twin = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        twin(IDS).backward()
    loss = model(IDS)
    (of_the_step,) = fl.gradients(lambda: loss, [model.head.weight])
    fl.gradients(lambda: model(IDS) + loss.square(), [model.embed, model.embed.weight])
    loss.backward()
    assert torch.equal(of_the_step, twin.head.weight.grad)
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)


def test_a_tensor_of_a_step_in_progress_is_a_valid_target() -> None:
    model = Net()
    hidden = model.embed(IDS)
    found, through = fl.gradients(lambda: hidden.square().sum(), [hidden, model.embed.weight])
    assert torch.equal(found, 2 * hidden)
    assert (through != 0).any()
    hidden.sum().backward()  # its graph is whole
    assert hidden.grad_fn is not None


def test_the_graph_of_the_pass_is_freed_afterwards() -> None:
    model, inside = Net(), []

    def loss() -> Tensor:
        hidden = model.embed(IDS)
        inside.append(weakref.ref(hidden))
        return hidden.sum()

    fl.gradients(loss, [model.embed.weight])
    gc.collect()
    assert inside[0]() is None


class Checkpointed(nn.Module):
    """A reentrant or a plain checkpoint around a part with dropout and BatchNorm."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 1)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.reentrant = reentrant

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        if self.reentrant is None:
            hidden = self.inner(hidden)
        else:
            hidden = checkpoint(self.inner, hidden, use_reentrant=self.reentrant)
        return self.head(hidden).square().mean()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_inside_checkpoints_of_both_kinds_are_found(reentrant: bool) -> None:
    uncut, model = Checkpointed(None), Checkpointed(reentrant)
    others = [name for name, _ in uncut.named_parameters() if name.startswith(("embed", "inner"))]

    def wrt(m: nn.Module) -> list[Tensor | nn.Module]:
        return [*(m.get_parameter(name) for name in others), m.inner[0], m.inner, m.embed]

    expected = fl.gradients(lambda: uncut(IDS), wrt(uncut))
    model(IDS).backward()
    ran: list[Tensor] = []
    handle = model.embed.weight.register_post_accumulate_grad_hook(ran.append)
    model.load_state_dict(uncut.state_dict())
    before = state(model)
    found = fl.gradients(lambda: model(IDS), wrt(model))
    assert all(map(torch.equal, found, fl.gradients(lambda: uncut(IDS), wrt(uncut))))
    assert all(mine.shape == its.shape for mine, its in zip(found, expected, strict=True))
    assert all((gradient != 0).any() for gradient in found if gradient.dim() > 1)
    assert same(state(model), before)
    assert ran == []
    model(IDS).backward()
    assert len(ran) == 1  # the hook is back
    handle.remove()


def test_a_parameter_that_a_reentrant_checkpoint_cuts_off_has_no_gradient() -> None:
    model = Checkpointed(True)
    model.embed.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says so too
        assert (fl.gradients(lambda: model(IDS), [model.head.weight])[0] != 0).any()
        with pytest.raises(fl.ProbeError, match=re.escape("wrt[0] (Parameter of shape (4, 4)): the loss does not dep")):
            fl.gradients(lambda: model(IDS), [model.inner[0].weight])


def test_hooks_of_the_users_run_and_those_on_accumulation_do_not() -> None:
    weight, seen = nn.Parameter(torch.ones(3)), []
    weight.register_hook(lambda gradient: gradient * torch.tensor([1.0, 0.0, 1.0]))
    weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter))
    (found,) = fl.gradients(lambda: (2 * weight).sum(), [weight])
    assert torch.equal(found, torch.tensor([2.0, 0.0, 2.0]))
    assert seen == []


def test_a_loss_that_calls_backward_itself_leaves_no_gradient_behind() -> None:
    model = Net()
    model(IDS).backward()
    before = state(model)

    def loss() -> Tensor:
        (inner,) = torch.autograd.grad(model(IDS), model.head.weight, create_graph=True)
        model(IDS).backward()
        model.zero_grad()
        return inner.square().sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found,) = fl.gradients(loss, [model.head.weight])
    assert (found != 0).any()
    assert same(state(model), before)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(around: Callable[[], object]) -> None:
    model = Net()
    (expected,) = fl.gradients(lambda: model(IDS), [model.head.weight])
    with around():  # type: ignore[attr-defined]
        before = [value.clone() for value in model.state_dict().values()]
        (found,) = fl.gradients(lambda: model(IDS), [model.head.weight])
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert not found.is_inference()


def test_inside_an_autocast_region_the_next_step_meets_no_weights_cast_before_it() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), torch.randn(3, 4)
    model[0].requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = fl.gradients(lambda: model(x).float().square().sum(), [model[0].weight])
        loss = model(x).float().square().sum()
    loss.backward()
    assert (found != 0).any()
    assert model[0].weight.grad is None
    assert (model[1].weight.grad != 0).any()


def test_a_loss_that_is_a_leaf_has_the_gradient_one() -> None:
    leaf = torch.tensor(3.0, requires_grad=True)
    (gradient,) = fl.gradients(lambda: leaf, [leaf])
    assert torch.equal(gradient, torch.tensor(1.0))
    assert leaf.grad is None


def test_results_have_memory_of_their_own() -> None:
    a, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    first, second = fl.gradients(lambda: (a + b).sum(), [a, b])
    first.add_(1)
    assert torch.equal(second, torch.ones(3))


def test_compiled_code_runs_as_it_was_compiled_and_nothing_is_recompiled() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    model = Net()
    model.lstm = nn.LSTM(4, 4, batch_first=True).eval()
    net = nn.Sequential(model.embed, model.norm, model.drop, model.head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler uses deprecated names of its own
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        compiled(IDS).square().mean().backward()
        graphs = counters["stats"]["unique_graphs"]
        before = state(net)
        found = fl.gradients(lambda: compiled(IDS).square().mean(), [model.head.weight, model.embed.weight])
        output = fl.gradients(lambda: compiled(IDS).square().mean(), [model.embed])
        assert counters["stats"]["unique_graphs"] == graphs > 0
        assert same(state(net), before)
        net.zero_grad()
        compiled(IDS).square().mean().backward()
        assert counters["stats"]["unique_graphs"] == graphs
    assert torch.equal(found[0], model.head.weight.grad)
    assert torch.equal(found[1], model.embed.weight.grad)
    assert (output[0] != 0).any()
    torch._dynamo.reset()


def test_a_model_first_compiled_afterwards_has_no_hook_compiled_in() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    x = torch.ones(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        (found,) = fl.gradients(lambda: compiled(x).sum(), [net[0]])
        compiled(x).sum().backward()
    assert torch.equal(found, net[1].weight.detach().expand(2, 3))
    assert not net._forward_hooks
    torch._dynamo.reset()


SAYS = {
    "loss_fn: it returned float, but the loss must be a tensor.": (lambda m: m(IDS).item(), lambda m: [m.head.weight]),
    "loss_fn: the loss has shape (2, 3, 1), but it must be one number. Return its mean.": (
        lambda m: m.head(m.embed(IDS)),
        lambda m: [m.head.weight],
    ),
    "loss_fn: the loss does not depend on `wrt`, or was cut off from it": (
        lambda m: m(IDS).detach(),
        lambda m: [m.head.weight],
    ),
    "loss_fn: the loss is torch.int64, which has no gradient.": (lambda m: IDS.sum(), lambda m: [m.head.weight]),
    "wrt[1] (Parameter of shape (1,)): the loss does not depend on it.": (
        lambda m: m.embed(IDS).sum(),
        lambda m: [m.embed.weight, m.head.bias],
    ),
    "wrt[0] (Linear): not called in the pass.": (lambda m: m.embed(IDS).sum(), lambda m: [m.head]),
    "wrt[0] (Embedding), call 2: called 2 times in the pass, counted from 0.": (
        lambda m: (m.embed(IDS) + m.embed(IDS)).sum(),
        lambda m: [(m.embed, 2)],
    ),
    "wrt[0] (Embedding), call 1: the loss does not depend on it. Leave it out.": (
        lambda m: (m.embed(IDS), m.embed(IDS))[0].sum(),
        lambda m: [m.embed],
    ),
    "wrt[0] ('hidden'): not called in the pass.": (lambda m: m.embed(IDS).sum(), lambda m: ["hidden"]),
    "wrt[0] (LSTM): it returns tuple, not one tensor.": (lambda m: m(IDS), lambda m: [m.lstm]),
    "wrt[0] (Identity): it returns torch.int64, which has no gradient.": (
        lambda m: m.embed(m.same(IDS)).sum(),
        lambda m: [m.same],
    ),
}


@pytest.mark.parametrize("says", SAYS)
def test_a_pass_without_the_requested_gradient_raises_and_changes_nothing(says: str) -> None:
    model, (loss, wrt) = Net(), SAYS[says]
    before = state(model)
    with pytest.raises(fl.ProbeError, match=re.escape(says)):
        fl.gradients(lambda: loss(model), wrt(model))
    assert same(state(model), before)


@pytest.mark.parametrize(
    ("wrt", "says"),
    [
        (torch.ones(2), "wrt: expected a list of tensors and modules, got Tensor. Pass `[...]`."),
        ([b"embed.weight"], "wrt[0] (bytes): it must be a tensor, a module, the name of a mark"),
        ([IDS], "wrt[0] (Tensor of shape (2, 3)): torch.int64 has no gradient."),
    ],
)
def test_bad_targets_are_named(wrt: object, says: str) -> None:
    with pytest.raises(TypeError, match=re.escape(says)):
        fl.gradients(lambda: torch.ones(()), wrt)  # type: ignore[arg-type]


def test_a_loss_that_is_not_a_function_is_named() -> None:
    with pytest.raises(
        TypeError, match=re.escape("loss_fn: expected a function, got Tensor. Pass one that runs the pass:")
    ):
        fl.gradients(torch.ones(()), [])  # type: ignore[arg-type]


def test_the_parameters_of_a_model_can_be_given_as_they_come() -> None:
    model = Net()
    found = fl.gradients(lambda: model(IDS), model.parameters())
    assert [gradient.shape for gradient in found] == [parameter.shape for parameter in model.parameters()]
    assert all(map(torch.equal, found, plain(model, lambda m: list(m.parameters()))))
