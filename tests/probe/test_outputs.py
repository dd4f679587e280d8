"""Gradients at each call of a module that is called several times, and at tensors that the forward marks by a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import frostline as fl

CONTEXT = torch.tensor([[1, 2, 3, 1], [4, 1, 0, 5], [2, 2, 2, 3]])  # windows of four neighbours


class CBOW(nn.Module):
    """Looks its neighbours up one position at a time and sums them, as word2vec tutorials do; or all at once."""

    def __init__(self, learns: dict[str, Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.context, self.word = nn.Embedding(6, 4).double(), nn.Embedding(6, 4).double()
        self.drop = nn.Dropout(0.3)
        if learns:
            fl.train_only(self, learns)

    def forward(self, windows: Tensor, together: bool = False) -> Tensor:
        if together:
            hidden = self.context(windows).sum(1)
        else:
            hidden = sum(self.context(windows[:, j]) for j in range(windows.shape[1]))
        return self.score(fl.mark(hidden, "hidden"))

    def score(self, hidden: Tensor) -> Tensor:
        negatives = torch.randint(6, (len(hidden), 2))
        return (self.drop(hidden)[:, None] * self.word(negatives)).sum(-1).sigmoid().log().mean()


@pytest.mark.parametrize("learns", [None, {"*": fl.everything, "context.weight": fl.rows([1, 3])}])
def test_the_gradients_of_the_calls_are_those_of_one_call_for_all_positions(learns: dict[str, Any] | None) -> None:
    model = CBOW(learns)
    (together,) = fl.gradients(lambda: model(CONTEXT, together=True), [model.context])
    (calls,) = fl.gradients(lambda: model(CONTEXT), [model.context])
    assert isinstance(calls, tuple)
    assert len(calls) == 4
    assert torch.equal(torch.stack(calls, 1), together)
    assert (together != 0).any(-1).all()


def test_one_call_is_asked_for_by_its_index_and_next_to_other_things() -> None:
    model = CBOW()
    (calls,) = fl.gradients(lambda: model(CONTEXT), [model.context])
    found = fl.gradients(
        lambda: model(CONTEXT), [(model.context, 2), model.word.weight, (model.context, 0), model.word, "hidden"]
    )
    assert torch.equal(found[0], calls[2])
    assert torch.equal(found[2], calls[0])
    assert found[1].shape == (6, 4)
    assert found[3].shape == (3, 2, 4)
    assert torch.equal(found[4], calls[0])  # a sum passes its gradient on


def test_the_gradient_of_a_call_equals_finite_differences() -> None:
    model = CBOW().eval()
    (calls,) = fl.gradients(lambda: seeded(model), [model.context])

    def seeded_loss_with(call: int, row: int, column: int, step: float) -> float:
        seen = []

        def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            seen.append(output)
            if len(seen) - 1 != call:
                return output
            moved = output.clone()
            moved[row, column] += step
            return moved

        with model.context.register_forward_hook(add):
            return seeded(model).item()

    for call in range(4):
        for row in range(3):
            for column in range(4):
                up, down = (seeded_loss_with(call, row, column, step) for step in (1e-6, -1e-6))
                assert (up - down) / 2e-6 == pytest.approx(float(calls[call][row, column]), abs=1e-8)


def seeded(model: CBOW) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return model(CONTEXT)


def test_asking_for_calls_and_marks_changes_no_later_bit() -> None:
    def run(look: bool) -> list[Tensor]:
        model = CBOW()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        losses = []
        for _ in range(5):
            if look:
                fl.gradients(lambda: model(CONTEXT), [model.context, "hidden"])
                fl.adversarial.perturb(lambda: model(CONTEXT), model.context, epsilon=0.5, steps=2)
                fl.adversarial.perturb(lambda: model(CONTEXT), "hidden", epsilon=0.5)
                assert not model.context._forward_hooks
            optimizer.zero_grad()
            loss = model(CONTEXT)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    assert all(map(torch.equal, run(look=True), run(look=False)))
    assert run(look=False)[0] != run(look=False)[-1]


@pytest.mark.parametrize("per", ["token", "sentence"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_perturbation_of_the_calls_is_the_one_of_all_positions(per: Any, steps: int) -> None:
    model = CBOW()
    together = fl.adversarial.perturb(
        lambda: model(CONTEXT, together=True), model.context, epsilon=0.5, steps=steps, per=per
    )
    calls = fl.adversarial.perturb(lambda: model(CONTEXT), model.context, epsilon=0.5, steps=steps, per=per)
    assert torch.allclose(torch.stack(calls.delta, 1), together.delta, atol=1e-12)
    assert torch.allclose(calls.loss, together.loss, atol=1e-12)
    with fl.adversarial.applied(model.context, calls.delta):
        assert torch.equal(model(CONTEXT).detach(), calls.loss)


def test_one_call_alone_or_a_mark_is_perturbed() -> None:
    model = CBOW()
    one = fl.adversarial.perturb(lambda: model(CONTEXT), (model.context, 1), epsilon=0.5)
    mark = fl.adversarial.perturb(lambda: model(CONTEXT), "hidden", epsilon=0.5)
    assert torch.allclose(one.delta.norm(dim=-1), torch.full((3,), 0.5).double())
    assert torch.equal(one.delta, mark.delta)  # the sum of the calls is what is marked
    assert torch.allclose(one.loss, mark.loss)
    assert one.loss > fl.adversarial.perturb(lambda: model(CONTEXT), (model.context, 1), epsilon=1e-9).loss


def test_a_mark_is_the_tensor_itself_and_counts_its_tensors() -> None:
    x = torch.ones(2)
    assert fl.mark(x, "x") is x

    def loss() -> Tensor:
        first = fl.mark(x * 1.0, "x")
        return (3 * first * fl.mark(first + 1, "x")).sum()

    (calls,) = fl.gradients(loss, ["x"])
    assert [call.tolist() for call in calls] == [[9.0, 9.0], [3.0, 3.0]]
    (second,) = fl.gradients(loss, [("x", 1)])
    assert torch.equal(second, calls[1])


def test_compiled_code_contains_nothing_of_a_mark_and_is_run_eagerly_for_it() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: fl.mark(x * 2, "x").square().sum(), backend="eager", fullgraph=True)
    x = torch.ones(2, requires_grad=True)
    assert compiled(x) == 8
    assert fl.gradients(lambda: compiled(x), ["x"])[0].tolist() == [4.0, 4.0]
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_that_repeats_calls_gives_the_gradients_or_an_error(reentrant: bool) -> None:
    table, mix = nn.Embedding(6, 4).double(), nn.Linear(4, 4).double()

    def part(j: Tensor, once: Tensor) -> Tensor:
        return mix(table(CONTEXT[:, int(j)])).tanh() * once

    def loss(checkpointed: bool = True) -> Tensor:
        ones = torch.ones(1).double().requires_grad_()
        parts = [
            checkpoint(part, torch.tensor(j), ones, use_reentrant=reentrant)
            if checkpointed
            else part(torch.tensor(j), ones)
            for j in range(2)
        ]
        return (parts[0] * parts[1]).sum()

    plain = fl.gradients(lambda: loss(False), [table])[0]
    if reentrant:
        with pytest.raises(fl.ProbeError, match="reentrant checkpoint, which hides them from each other"):
            fl.gradients(loss, [table])
    else:
        assert all(map(torch.equal, fl.gradients(loss, [table])[0], plain))
    with pytest.raises(fl.ProbeError, match=r"in a (reentrant )?checkpoint, which"):
        fl.adversarial.perturb(loss, table, epsilon=0.1, steps=2)
    assert not table._forward_hooks


@pytest.mark.parametrize(
    ("wrt", "error", "says"),
    [
        ([(nn.Linear(1, 1), -1)], ValueError, "call -1: calls are counted from 0"),
        ([(nn.Linear(1, 1), True)], TypeError, "it must be a tensor, a module, the name of a mark"),
        ([3], TypeError, "wrt[0] (int): it must be a tensor, a module"),
        ("hidden", TypeError, "wrt: expected a list of tensors and modules, got str"),
    ],
)
def test_what_cannot_be_meant_is_named(wrt: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        fl.gradients(lambda: torch.ones(1).sum(), wrt)


def test_parts_that_do_not_match_the_calls_are_errors() -> None:
    model = CBOW()
    delta = fl.adversarial.perturb(lambda: model(CONTEXT), model.context, epsilon=0.5).delta

    def passes(run: Callable[[], Any]) -> None:
        with fl.adversarial.applied(model.context, delta):
            run()

    with pytest.raises(fl.ProbeError, match="call 4, but delta has 4 parts"):
        passes(lambda: (model(CONTEXT), model(CONTEXT)))
    with pytest.raises(fl.ProbeError, match="called 1 times in the block, but delta has 4 parts"):
        passes(lambda: model.context(CONTEXT[:, 0]))
    assert not model.context._forward_hooks
