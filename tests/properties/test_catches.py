"""The suite can fail: faults of the kind that it is there for are planted, and it finds each of them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frostline as fl
from frostline.partial import lookups, module
from frostline.partial.indices import LearnedIndices
from frostline.partial.tensor import LOOKUPS

from .cases import Picker, decode
from .run import Ours, run

Plant = Callable[[pytest.MonkeyPatch], None]


def complaints(kinds: Sequence[str], count: int) -> list[str]:
    """Return the messages of the assertions that fail in drawn cases of these kinds."""
    said = []
    for i in range(count):
        case = decode(Picker(random.Random(i).randbytes(40)), kinds, ("plain",))
        try:
            run(case)
        except AssertionError as error:
            said.append(str(error))
    return said


def a_lookup_that_rescales_the_table(patch: pytest.MonkeyPatch) -> None:
    def look_up(ids: Tensor, weight: Any, *args: Any, **options: Any) -> Any:
        if weight.learned.requires_grad and torch.is_grad_enabled():
            weight.frozen.data.mul_(1.001)
        return lookups.embedding(ids, weight, *args, **options)

    patch.setitem(LOOKUPS, F.embedding, look_up)


def a_row_that_is_stuck(patch: pytest.MonkeyPatch) -> None:
    from_rows = LearnedIndices.from_rows

    def stuck(ids: Tensor, *args: Any) -> LearnedIndices:
        indices = from_rows(ids, *args)
        assert indices.row_to_slot is not None
        indices.row_to_slot[ids[-1]] = -1
        return indices

    patch.setattr(LearnedIndices, "from_rows", stuck)


def a_bias_whose_gradient_is_lost(patch: pytest.MonkeyPatch) -> None:
    def linear(x: Tensor, weight: Any, bias: Any = None) -> Any:
        return lookups.linear(x, weight, None if bias is None else bias.clone().detach())

    patch.setitem(LOOKUPS, F.linear, linear)


def a_checkpoint_without_what_was_learned(patch: pytest.MonkeyPatch) -> None:
    def save(self: nn.Module, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)
        for name in self._frostline.partial:
            destination.pop(f"{prefix}{name}_learned")

    patch.setattr(module.PartialModule, "_save_to_state_dict", save)


def a_sparse_gradient_of_every_row(patch: pytest.MonkeyPatch) -> None:
    def every_row(found: Tensor, slots: Tensor, learned: Tensor) -> Tensor:
        values = F.embedding(slots.clamp(min=0), learned, sparse=True)
        flat = torch.where((slots >= 0)[:, None], values.to(found.dtype), found.reshape(len(slots), -1))
        return flat.view_as(found)

    patch.setattr(lookups, "_sparse_gradient_needs_eager", every_row)


def an_optimizer_that_decays_frozen_parts(patch: pytest.MonkeyPatch) -> None:
    """As a masked gradient does: what is frozen has a gradient of zeros, and decay moves it."""

    def decay(self: Ours) -> None:
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.data.mul_(0.99)

    patch.setattr(Ours, "after_step", decay)


def an_optimizer_that_never_steps(patch: pytest.MonkeyPatch) -> None:
    def zero(self: Ours) -> list[Tensor]:
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return [torch.zeros_like(parameter) for parameter in self.parameters]

    patch.setattr(Ours, "collect", zero)


def a_table_that_learns_as_a_whole(patch: pytest.MonkeyPatch) -> None:
    """Right values, but an optimizer that keeps state for the whole table."""
    patch.setattr(fl.Plan, "parameters", lambda self: list(self._model.requires_grad_().parameters()))


FAULTS: dict[str, tuple[Plant, list[str], str]] = {
    "frozen rows move": (a_lookup_that_rescales_the_table, ["embedding"], "frozen moved"),
    "decay moves frozen rows": (an_optimizer_that_decays_frozen_parts, ["linear", "convolution 1d"], "frozen moved"),
    "a row is stuck": (a_row_that_is_stuck, ["embedding", "bag of sums"], "weight: the gradient differs"),
    "a bias learns nothing": (a_bias_whose_gradient_is_lost, ["linear"], "got no gradient|bias: the gradient"),
    "a checkpoint is old": (
        a_checkpoint_without_what_was_learned,
        ["own lookup"],
        "the gradient differs|learned values differ",
    ),
    "rows that were not used": (a_sparse_gradient_of_every_row, ["embedding, sparse"], "names other rows"),
    "nothing learns": (an_optimizer_that_never_steps, ["convolution 2d"], "the gradient differs"),
    "everything is kept": (a_table_that_learns_as_a_whole, ["embedding"], ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_suite_finds_a_planted_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, kinds, says = FAULTS[fault]
    assert complaints(kinds, 24) == []
    plant(monkeypatch)
    said = complaints(kinds, 24)
    assert any(re.search(says, complaint) for complaint in said), said
