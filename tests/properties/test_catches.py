"""The suite can fail: faults of the kind that it is there for are planted, and it finds each of them."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frostline as fl
from frostline.partial import module, tensor
from frostline.partial.tensor import attributes, dispatch, lookups, products
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.memory import Memory
from frostline.partial.tensor.partial_tensor import OVERRIDES

from .cases import BYTES, Picker, decode
from .run import Ours, run

Plant = Callable[[pytest.MonkeyPatch], None]

pytestmark = pytest.mark.filterwarnings("ignore:.*is dense, so all its")  # of row optimizers


def complaints(kinds: Sequence[str], count: int, **chosen: Any) -> list[str]:
    """Return the messages of the assertions that fail in drawn cases of these kinds, with some choices as given."""
    said = []
    for i in range(count):
        drawn = decode(Picker(random.Random(i).randbytes(BYTES)), kinds, (chosen.get("call", "plain"),))
        if chosen and any("float32" in selection for selection in drawn.selections):
            continue  # such a case may be illegal with other choices
        case = dataclasses.replace(drawn, **chosen)
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

    patch.setitem(OVERRIDES, F.embedding, look_up)


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
        return products.linear(x, weight, None if bias is None else bias.clone().detach())

    patch.setitem(OVERRIDES, F.linear, linear)


def a_checkpoint_without_what_was_learned(patch: pytest.MonkeyPatch) -> None:
    def save(self: nn.Module, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)
        for name in self._frostline.partial:
            destination.pop(f"{prefix}{name}_learned")

    patch.setattr(module.PartialModule, "_save_to_state_dict", save)


def a_sparse_gradient_of_every_row(patch: pytest.MonkeyPatch) -> None:
    def every_row(learned: Tensor, parts: tuple[Tensor, Tensor], ids: Tensor, sparse: bool) -> Tensor:
        frozen, row_to_slot = parts
        slots = row_to_slot[ids]
        values = F.embedding(slots.clamp(min=0), learned, sparse=True)
        found = F.embedding(ids, frozen.detach())
        return torch.where((slots >= 0).unsqueeze(-1), values.to(found.dtype), found)

    patch.setattr(lookups, "rows_of", every_row)


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


def a_frozen_part_that_gets_gradients(patch: pytest.MonkeyPatch) -> None:
    """It is used undetached, as long as nobody sets its `requires_grad`."""

    def merged(memory: Memory, frozen: Tensor, learned: Tensor) -> Tensor:
        return frozen.index_put(memory.indices.index, learned.to(frozen.dtype))

    patch.setattr(module, "partial_tensor", merged)


def a_fused_step_that_nobody_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.autograd.graph, "increment_version", lambda tensor: None)


def a_detached_weight_that_learns(patch: pytest.MonkeyPatch) -> None:
    for name in attributes._DETACH:
        patch.setitem(OVERRIDES, name, lambda weight: weight.merged())


def a_weight_that_hands_on_no_gradient(patch: pytest.MonkeyPatch) -> None:
    """As if what is not a lookup were run on a copy."""

    def copied(memory: Memory, frozen: Tensor, learned: Tensor) -> Tensor:
        made = partial_tensor(memory, frozen, learned)
        return made if memory.looked_up else made.detach().requires_grad_()

    partial_tensor = module.partial_tensor
    patch.setattr(module, "partial_tensor", copied)


def a_view_whose_hooks_never_run(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(dispatch.VIEW_OVERRIDES, Tensor.register_hook, lambda *args: None)


def a_plan_that_drops_hooks(patch: pytest.MonkeyPatch) -> None:
    train_only = fl.train_only

    def plan(model: nn.Module, *args: Any) -> fl.Plan:
        for parameter in model.parameters():
            parameter._backward_hooks = None
        return train_only(model, *args)

    patch.setattr(fl, "train_only", plan)


def a_held_weight_that_goes_dead(patch: pytest.MonkeyPatch) -> None:
    """It shows the right values, but what is learned through it reaches a part that no module uses any more."""
    patch.setattr(tensor.PartialTensor, "sync", lambda self, to_write=False: None)


def rows_of_matrices_that_share_a_gradient(patch: pytest.MonkeyPatch) -> None:
    gather = LearnedIndices.gather

    def first(self: LearnedIndices, full: Tensor) -> Tensor:
        found = gather(self, full)
        return found[:1].expand_as(found).clone() if full.ndim == 3 and self.kind == "rows" else found

    patch.setattr(LearnedIndices, "gather", first)


def writes_that_are_overwritten(patch: pytest.MonkeyPatch) -> None:
    """The learned part always wins."""
    patch.setattr(LearnedIndices, "update", lambda self, learned, full: self.scatter_(full, learned.detach()))


def a_memory_that_is_brought_up_to_date_later(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module.PartialModule, "_around_step", lambda self: None)


def an_array_of_old_values(patch: pytest.MonkeyPatch) -> None:
    """What is only looked up is not brought up to date before it is read."""
    patch.setattr(tensor.PartialTensor, "sync", lambda self, to_write=False: None)
    patch.setattr(Memory, "seems_changed", lambda self, frozen, learned: False)


def shared_memory_that_nobody_learns_in(patch: pytest.MonkeyPatch) -> None:
    share = nn.Module.share_memory

    def copy_and_share(self: nn.Module) -> nn.Module:
        share(self)
        for parameter in self.parameters():
            parameter.data = parameter.data * 1.001
        return self

    patch.setattr(nn.Module, "share_memory", copy_and_share)


def recurrent_weights_without_gradients(patch: pytest.MonkeyPatch) -> None:
    flat = module._flat_weights
    patch.setattr(module, "_flat_weights", lambda rnn: [w if w is None else w.detach() for w in flat(rnn)])
    patch.setattr(module, "_classes", {})


def a_load_that_misses_what_learns(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module.sharded, "update", lambda indices, learned, full: None)


def a_conversion_that_forgets(patch: pytest.MonkeyPatch) -> None:
    """It converts what learns to numbers of fewer digits."""
    apply = module.PartialModule._apply

    def rounded(self: Any, fn: Any, recurse: bool = True) -> Any:
        for name in self._frostline.partial:
            self._parameters[f"{name}_learned"].data.mul_(1.01)
        return apply(self, fn, recurse)

    patch.setattr(module.PartialModule, "_apply", rounded)


def a_frozen_part_that_is_given_a_gradient(patch: pytest.MonkeyPatch) -> None:
    """An optimizer that is given all parameters moves it."""
    collect = Ours.collect

    def with_ones(self: Ours) -> list[Tensor]:
        for parameter in self.given:
            if parameter.grad is None:
                parameter.grad = torch.ones_like(parameter)
        return collect(self)

    patch.setattr(Ours, "collect", with_ones)


FAULTS: dict[str, tuple[Plant, list[str], str]] = {
    "frozen rows move": (a_lookup_that_rescales_the_table, ["embedding"], "frozen moved"),
    "decay moves frozen rows": (an_optimizer_that_decays_frozen_parts, ["linear", "convolution 1d"], "frozen moved"),
    "a row is stuck": (a_row_that_is_stuck, ["embedding", "bag of sums"], "weight: the gradient differs"),
    "a bias learns nothing": (a_bias_whose_gradient_is_lost, ["linear"], "got no gradient|bias: the gradient"),
    "a checkpoint is old": (
        a_checkpoint_without_what_was_learned,
        ["own lookup"],
        "the gradient differs|learned values differ|it is not current",
    ),
    "rows that were not used": (a_sparse_gradient_of_every_row, ["embedding, sparse"], "names other rows"),
    "nothing learns": (an_optimizer_that_never_steps, ["convolution 2d"], "the gradient differs"),
    "everything is kept": (a_table_that_learns_as_a_whole, ["embedding"], ""),
}


# The same for each axis of what other code does: the choice that finds the fault is made in every case.
BY_OTHERS: dict[str, tuple[Plant, list[str], str, dict[str, Any]]] = {
    "requires_grad is set": (
        a_frozen_part_that_gets_gradients,
        ["own forward", "convolution 1d"],
        "is frozen and got a gradient",
        {"toggle": "all on"},
    ),
    "a fused step is not counted": (
        a_fused_step_that_nobody_counts,
        ["convolution 2d"],
        "read as raw: it is not current",
        {"optimizer": "Adam", "kernel": "fused", "reading": "raw", "dtype": "float32", "oracle": "apart"},
    ),
    "a detached weight learns": (
        a_detached_weight_that_learns,
        ["own forward", "convolution 1d"],
        "the gradient differs",
        {"loss": "times detached", "reading": "nothing"},
    ),
    "a function of others gets a copy": (
        a_weight_that_hands_on_no_gradient,
        ["fused loss"],
        "got no gradient|the gradient differs",
        {},
    ),
    "hooks on views never run": (
        a_view_whose_hooks_never_run,
        ["hooked views"],
        "the gradient differs|the gradient of a view",
        {},
    ),
    "a new plan drops hooks": (
        a_plan_that_drops_hooks,
        ["linear", "embedding"],
        "the gradient differs",
        {"hook": "on gradients", "between": "plan again"},
    ),
    "a held weight goes dead": (
        a_held_weight_that_goes_dead,
        ["convolution 1d", "experts, by index"],
        "taken from the module is not current|no gradient by it",
        {"held": "weights", "between": "plan again"},
    ),
    "matrices share a gradient": (
        rows_of_matrices_that_share_a_gradient,
        ["experts, by index", "experts, batched", "heads, summed"],
        "the gradient differs",
        {},
    ),
    "a write is overwritten": (
        writes_that_are_overwritten,
        ["linear", "norms"],
        "a write was lost|a write did not reach",
        {"write": "a row"},
    ),
    "the memory is old": (
        a_memory_that_is_brought_up_to_date_later,
        ["cells", "convolution 3d"],
        "it is not current",
        {"reading": "raw"},
    ),
    "an array is old": (
        an_array_of_old_values,
        ["embedding"],
        "read as numpy: it is not current",
        {"reading": "numpy"},
    ),
    "shared memory is another": (
        shared_memory_that_nobody_learns_in,
        ["linear"],
        "frozen moved|differs|other values",
        {"shared": True},
    ),
    "a recurrence learns nothing": (
        recurrent_weights_without_gradients,
        ["rnn"],
        "the gradient differs",
        {"loss": "times detached"},
    ),
    "a load misses what learns": (
        a_load_that_misses_what_learns,
        ["linear", "rnn"],
        "the gradient differs|the learned values",
        {"between": "load in place"},
    ),
    "a conversion changes what learns": (
        a_conversion_that_forgets,
        ["linear", "norms"],
        "other values|the learned values",
        {"between": "another dtype and back"},
    ),
    "frozen parts that are given to an optimizer get gradients": (
        a_frozen_part_that_is_given_a_gradient,
        ["convolution 1d", "norms"],
        "frozen moved|is frozen and got a gradient",
        {"given": "model", "optimizer": "SGD", "kernel": "default"},
    ),
    "a reentrant checkpoint hands on no gradient": (
        a_weight_that_hands_on_no_gradient,
        ["convolution 1d", "own forward"],
        "got no gradient|the gradient differs",
        {"call": "checkpoint, reentrant", "loss": "nothing"},
    ),
}


@pytest.mark.parametrize("fault", BY_OTHERS)
def test_the_suite_finds_a_fault_that_shows_when_other_code_takes_part(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, kinds, says, chosen = BY_OTHERS[fault]
    legal: dict[str, Any] = {
        "optimizer": "Adam",
        "kernel": "default",
        "scaler": False,
        "overflow": -1,
        "average": False,
    }
    legal |= {"held": "nothing", "hook": "none", "double_backward": False} | chosen
    assert complaints(kinds, 12, **legal) == []
    plant(monkeypatch)
    said = complaints(kinds, 12, **legal)
    assert any(re.search(says, complaint) for complaint in said), said


@pytest.mark.parametrize("fault", FAULTS)
def test_the_suite_finds_a_planted_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, kinds, says = FAULTS[fault]
    assert complaints(kinds, 24) == []
    plant(monkeypatch)
    said = complaints(kinds, 24)
    assert any(re.search(says, complaint) for complaint in said), said
