"""Transfer optimizer state from the part of a tensor that learned before to the part that learns now, by entry.

Letters used for shapes in this file:
    V  rows of a tensor             *  the rest of its shape
    R  rows that learned            R' rows that learn now (n, n': single entries)

An entry that learned before keeps its state. An entry that did not is new, and gets the optimizer's initial state.

No list of optimizers says whether state belongs to entries, to rows or to a tensor as a whole. It is inferred from the
initial state for a stand-in: a tensor made of the rows in which something is new, and of more rows until the number of
rows differs from all other sizes. State of the stand-in's shape belongs to entries; state of its length and one value
per row, to rows; a single value, to the tensor as a whole. Any other state mixes entries (the factors of Adafactor),
and transferring it raises an error.

No optimizer declares its initial state either: the sums of Adagrad start at `initial_accumulator_value`, the step sizes
of Rprop at `lr`, schedule-free optimizers keep the values themselves. So a copy of the optimizer takes one step with a
gradient of zero on the stand-in, and each value is recorded when it is first put into the state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import StaleOptimizerError
from frostline.partial.model_tensors import ModelTensor

MAKE_NEW = "Make a new optimizer from plan.parameters()."


@dataclass(frozen=True)
class Part:
    """What learns of one tensor: a Parameter, and the index of its elements; None for the whole tensor."""

    parameter: Tensor
    index: tuple[Tensor, ...] | None

    def by_rows(self, full: Tensor) -> bool:
        """Return whether its dimension 0 counts rows of the whole tensor `full`."""
        return self.index is None or self.parameter.ndim == full.ndim

    def same_entries(self, other: Part) -> bool:
        """Return whether both are the same entries, in the same order and dtype."""
        mine, theirs = self.parameter, other.parameter
        if mine is theirs:
            return True
        if self.index is None or other.index is None or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return False
        pairs = zip(self.index, other.index, strict=True)
        return all(torch.equal(a, b.to(a.device)) for a, b in pairs)


def transferred(
    tensor: ModelTensor, old: Part, new: Part, state: dict[str, Any], optimizer: Optimizer, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state of the old part as state of the new one; empty if no entry learns in both.

    Args:
        tensor: The tensor that both are parts of.
        old: What learned of it.
        new: What learns of it now.
        state: What the optimizer keeps for `old`.
        optimizer: The optimizer.
        options: The parameter group that `new` will be in.

    Raises:
        StaleOptimizerError: State belongs neither to entries nor to rows nor to the tensor as a whole.
    """
    if old.same_entries(new):
        return state
    source = _source(tensor.tensor, old, new)
    if not bool((source >= 0).any()):
        return {}
    new_rows = (source < 0).reshape(len(source), -1).any(1).nonzero().squeeze(1)
    stand_in = _stand_in(new.parameter, new_rows)
    initial = initial_state(optimizer, options, stand_in)
    who = f"optimizer: {type(optimizer).__name__}: {tensor.name}"
    by_rows = old.by_rows(tensor.tensor) and new.by_rows(tensor.tensor)
    transfer = _Transfer(old.parameter, new.parameter, source, new_rows, stand_in.shape, by_rows)
    return {key: transfer.state(value, initial.get(key), f"{who}: its state {key!r}") for key, value in state.items()}


def _source(full: Tensor, old: Part, new: Part) -> Tensor:
    """Return for each row of the new part (R',), or each of its entries, its position in the old part; -1 if new."""
    device = new.parameter.device
    if old.by_rows(full) and new.by_rows(full):
        positions = torch.arange(len(full), device=device)
    else:
        positions = torch.arange(full.numel(), device=device).view(full.shape)
    before, now = (
        positions if part.index is None else positions[tuple(index.to(device) for index in part.index)]
        for part in (old, new)
    )
    slots = torch.full((positions.numel(),), -1, device=device)
    slots[before.flatten()] = torch.arange(before.numel(), device=device)
    return slots[now]


def _stand_in(part: Tensor, new_rows: Tensor) -> Tensor:
    """Return the new rows of a part (R', *), and more rows until their number differs from all other sizes."""
    rows = new_rows.tolist()
    while len(rows) in (0, 1, *part.shape[1:]):
        rows.append(0)
    return part.detach()[torch.tensor(rows, device=part.device)]


@dataclass(frozen=True)
class _Transfer:
    """How state gets from an old part to a new one.

    Attributes:
        old, new: The Parameters of the two parts.
        source: From `_source`; for rows if `by_rows`, else for entries.
        new_rows: The rows of the new part in which an entry is new.
        stand_in: Shape of the stand-in, whose first rows are the new ones.
    """

    old: Tensor
    new: Tensor
    source: Tensor
    new_rows: Tensor
    stand_in: torch.Size
    by_rows: bool

    def state(self, value: Any, initial: Any, what: str) -> Any:
        """Return one value of the old part's state for the new part; `initial` is the stand-in's under that key."""
        if not isinstance(value, Tensor):
            if value is None or isinstance(value, bool | int | float | str):
                return value
        elif value.ndim == 0 or (value.numel() == 1 and isinstance(initial, Tensor) and initial.numel() == 1):
            return value
        elif isinstance(initial, Tensor) and (moved := self._tensor(value, initial)) is not None:
            return moved
        why = "does not belong to single rows or entries, so it cannot be carried over"
        raise StaleOptimizerError(f"{what} {why}. {MAKE_NEW}")

    def _tensor(self, value: Tensor, initial: Tensor) -> Tensor | None:
        per_entry = initial.shape == self.stand_in
        per_row = initial.ndim > 0 and initial.numel() == len(initial) == self.stand_in[0]
        if initial.is_sparse or not (per_entry or per_row):
            return None
        dtype = value.dtype if self.old.dtype == self.new.dtype else initial.dtype
        result = initial.new_zeros(len(self.new), *initial.shape[1:], dtype=dtype)
        result[self.new_rows] = initial[: len(self.new_rows)].to(dtype)
        value = value.to(result.device)
        if self.by_rows:
            if len(value) != len(self.old) or value.shape[1:] != result.shape[1:]:
                return None
            return self._rows_of_sparse(value, dtype) if value.is_sparse else _copy(result, value, self.source)
        if value.is_sparse:
            return None
        if not per_entry:
            return self._entries_to_rows(result, value)
        if value.shape != self.old.shape:
            if value.numel() != len(self.old):
                return None
            value = value.reshape(-1, *(1 for _ in self.old.shape[1:])).expand(self.old.shape)
        return _copy(result.flatten(), value.flatten(), self.source.flatten()).view(result.shape)

    def _entries_to_rows(self, result: Tensor, value: Tensor) -> Tensor | None:
        """Turn a value of each entry (n,) into one of each row; None if entries of a row have different ones."""
        continues = (self.source >= 0).flatten(1)
        values = value[self.source.flatten(1).clamp(min=0)]
        first = values.gather(1, continues.int().argmax(1, keepdim=True))
        if bool((continues & (values != first)).any()):
            return None
        rows = continues.any(1)
        result.view(-1)[rows] = first[rows, 0].to(result.dtype)
        return result

    def _rows_of_sparse(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a sparse buffer of some rows (torch's SGD keeps one) with the rows' new ids, in the same order."""
        slots = torch.full((len(value),), -1, device=value.device)
        continues = self.source >= 0
        slots[self.source[continues]] = continues.nonzero().squeeze(1)
        ids = slots[value._indices()[0]]
        entries = value._values()[ids >= 0].to(dtype)
        shape = (len(self.new), *value.shape[1:])
        return torch.sparse_coo_tensor(ids[ids >= 0][None], entries, shape, check_invariants=False)


def _copy(result: Tensor, value: Tensor, source: Tensor) -> Tensor:
    continues = source >= 0
    result[continues] = value[source[continues]].to(result.dtype)
    return result


def initial_state(optimizer: Optimizer, group: Mapping[str, Any], values: Tensor) -> dict[str, Any]:
    """Return the state that `optimizer` makes for a parameter that it has never seen.

    Args:
        optimizer: Any optimizer. Its state, its groups and the random generators are not changed; no hook runs.
        group: The parameter group that the parameter would be in. Its weight decay is taken as 0, so that momentum
            starts at 0 too.
        values: The values of the parameter, which are not changed.

    Returns:
        State key -> the first value that the optimizer puts there: a tensor, a number, or anything else.

    Raises:
        StaleOptimizerError: The optimizer does not accept a parameter of this shape and dtype.

    Cost: one step of the optimizer on a copy of `values`.
    """
    errors = []
    for sparse in (False, True):  # some optimizers take dense gradients only, some sparse ones only
        parameter = nn.Parameter(values.detach().clone())
        parameter.grad = _zero_gradient(parameter, sparse)
        other, state = _copy_of(optimizer, {**group, "params": [parameter]})
        try:
            with torch.random.fork_rng([values.device] if values.is_cuda else []):
                _unhooked(type(optimizer).step)(other)
            return state.first
        except Exception as error:
            errors.append(" ".join(f"{type(error).__name__}: {error}".split())[:200])
    raise StaleOptimizerError(
        f"optimizer: {type(optimizer).__name__} does not take what learns now, {values.dtype} of shape "
        f"{tuple(values.shape)} ({errors[0]}). Make a new optimizer from plan.parameters()."
    )


class _RecordingState(dict[str, Any]):
    """The state of one parameter, which keeps a copy of the first value of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, Any] = {}

    def __setitem__(self, key: str, value: Any) -> None:
        self.first.setdefault(key, value.detach().clone() if isinstance(value, Tensor) else value)
        super().__setitem__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]


class _OptimizerState(dict[Any, Any]):
    """The `state` of an optimizer with one parameter; values under keys that are not parameters are deep copies."""

    def __init__(self, recording: _RecordingState, original: Mapping[Any, Any]) -> None:
        super().__init__(deepcopy({key: value for key, value in original.items() if not isinstance(key, Tensor)}))
        self.recording = recording

    def __missing__(self, key: Any) -> Any:
        return dict.setdefault(self, key, self.recording if isinstance(key, Tensor) else {})

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, Tensor) and value is not self.recording:
            self.recording.update(value)
            value = self.recording
        super().__setitem__(key, value)


def _copy_of(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Optimizer, _RecordingState]:
    """Return a copy of `optimizer` over one group that shares nothing with it that a step changes."""
    group = {key: value if key == "params" else _copied(value) for key, value in group.items()}
    if "weight_decay" in group:
        group["weight_decay"] = 0.0
    recording = _RecordingState()
    other = object.__new__(type(optimizer))
    attributes = {
        name: OrderedDict() if name.endswith("_hooks") else _copied(value) for name, value in vars(optimizer).items()
    }
    other.__dict__ = {**attributes, "param_groups": [group], "state": _OptimizerState(recording, optimizer.state)}
    return other, recording


def _copied(value: Any) -> Any:
    """Return `value`, copied if a step might change it in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, torch.Generator):
        return value.clone_state()
    return copy(value) if isinstance(value, list | dict | set) else value


def _unhooked(step: Any) -> Any:
    """Return the step without the wrapper of torch that runs hooks, some of which are registered for all optimizers."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def _zero_gradient(parameter: Tensor, sparse: bool) -> Tensor:
    if not sparse:
        return torch.zeros_like(parameter)
    ids = torch.empty(1, 0, dtype=torch.int64, device=parameter.device)
    no_values = parameter.detach().new_empty(0, *parameter.shape[1:])
    return torch.sparse_coo_tensor(ids, no_values, parameter.shape, check_invariants=False)
