"""A Case: one choice for each axis, as plain values, so that a failing one can be pasted back; and how it is drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st

from .modules import KINDS
from .optimizers import FAMILIES, Family

SEED = int(os.environ.get("FROSTLINE_SEED", "20261121"))
CASES = int(os.environ.get("FROSTLINE_SOAK", "2000"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
# What is common comes up more often, so that in most cases of one tensor something of it learns.
SELECTIONS = (
    *("rows", "entries", "everything", "all rows", "rows", "entries", "rows, padding too", "all entries") * 2,
    *("nothing", "no rows", "no entries", "rows in float32", "entries in float32"),
)
_BYTES = 40


@dataclass(frozen=True)
class Case:
    """One training run, drawn.

    Attributes:
        kind: A key of KINDS.
        selections: One of SELECTIONS for each tensor, in the order of `named_parameters()`.
        optimizer: A key of FAMILIES.
        oracle: "restored": the whole tensors learn, and frozen entries are put back after each step; "apart": the same
            optimizer on the learned part as a tensor of its own.
        values: The seed of weights, inputs, rows and masks.
        call: How the module is called: "plain", "functional", "checkpoint", "checkpoint, reentrant", or compiled by
            "aot_eager" or "inductor".
        between: What happens between the second step and the third.
        overflow: The step whose loss is infinite; -1 for none.
    """

    kind: str
    selections: tuple[str, ...]
    optimizer: str
    oracle: str
    dtype: str
    decay: float
    momentum: float
    kernel: str
    schedule: bool
    clip: str
    accumulate: int
    set_to_none: bool
    autocast: bool
    scaler: bool
    overflow: int
    call: str
    average: bool
    between: str
    double_backward: bool
    values: int


@cache
def tensors_of(kind: str) -> tuple[tuple[str, int], ...]:
    """Name and number of dimensions of each tensor of a kind."""
    return tuple((name, parameter.ndim) for name, parameter in KINDS[kind].build().named_parameters())


class Picker:
    """Chooses one option after the other: a byte for each, so that all are as likely, and smaller bytes are simpler."""

    def __init__(self, raw: bytes) -> None:
        self._raw = iter(raw)

    def __call__(self, options: Sequence[Any]) -> Any:
        return options[next(self._raw) % len(options)]

    def integer(self) -> int:
        """Return an integer of three bytes."""
        return int.from_bytes(bytes(next(self._raw) for _ in range(3)), "big")


def cases(kinds: Sequence[str], calls: Sequence[str]) -> st.SearchStrategy[Case]:
    """Draw a legal case of these kinds, called in one of these ways."""
    return st.binary(min_size=_BYTES, max_size=_BYTES).map(lambda raw: decode(Picker(raw), kinds, calls))


def decode(pick: Picker, kinds: Sequence[str], calls: Sequence[str]) -> Case:
    """A legal case; what torch itself refuses for a plain module, or does wrong there, is left out."""
    kind = pick(kinds)
    module, call = KINDS[kind], pick(calls)
    optimizer = pick(_optimizers_for(kind))
    family = FAMILIES[optimizer]
    dtype = pick(_dtypes_for(kind, optimizer))
    half = dtype in ("bfloat16", "float16")
    between = pick(["nothing", "plan again", "deepcopy", "save and load"])
    if optimizer == "NAdam" and dtype != "float32" and between != "nothing":
        between = "plan again"  # its load_state_dict casts the product of its momenta, and goes on otherwise
    scaler = pick([False, True]) and dtype != "float16" and not family.closure and not module.sparse
    autocast = pick([False, True]) and dtype == "float32"
    kernels = list(family.kernels)
    if module.sparse or (half and optimizer == "SGD" and DEVICE == "cpu"):
        kernels = [
            kernel for kernel in kernels if kernel != "fused"
        ]  # none for sparse gradients; in half it moves nothing
    takes_decay = optimizer not in ("Rprop", "SparseAdam", "LBFGS")
    takes_decay &= not module.sparse or optimizer.startswith("Row")
    oracle = pick(["restored", "apart"])
    # A plain checkpoint has the table's own dtype; LBFGS loads all of its state in the dtype of the first tensor.
    in_float32 = half and between != "save and load" and not family.closure
    chosen = tuple(pick(_selections_for(kind, name, ndim, family, in_float32)) for name, ndim in tensors_of(kind))
    return Case(
        kind=kind,
        selections=chosen,
        optimizer=optimizer,
        oracle="apart" if family.whole or any("float32" in selection for selection in chosen) else oracle,
        dtype=dtype,
        decay=pick([0.0, 0.1]) if takes_decay else 0.0,
        momentum=pick([0.0, 0.5, 0.9] if optimizer == "SGD" else [0.5, 0.9]),
        kernel=pick(kernels),
        schedule=pick([False, True]),
        clip=pick(["none", "ours"] if module.sparse else ["none", "norm", "ours", "value"]),
        accumulate=pick([1, 2]),
        set_to_none=pick([True, False]),
        autocast=autocast,
        scaler=scaler,
        overflow=pick([-1, -1, 1]) if scaler else -1,
        call=call,
        average=pick([False, True]),
        between=between,
        double_backward=pick([False, False, True])
        and module.twice
        and not module.sparse
        and not family.closure
        and call in ("plain", "functional"),
        values=pick.integer(),
    )


@cache
def _optimizers_for(kind: str) -> list[str]:
    sparse, matrices = KINDS[kind].sparse, any(ndim == 2 for _, ndim in tensors_of(kind))
    return [
        name
        for name, family in FAMILIES.items()
        if (family.sparse if sparse else family.sparse != "only") and (matrices or not family.matrices)
    ]


def _dtypes_for(kind: str, optimizer: str) -> list[str]:
    """Without float16 where torch cannot add sparse gradients in it, and where an optimizer leaves its range."""
    return [name for name in DTYPES if name != "float16" or (FAMILIES[optimizer].float16 and not KINDS[kind].sparse)]


def _selections_for(kind: str, name: str, ndim: int, family: Family, in_float32: bool) -> list[str]:
    if family.matrices and ndim != 2:
        return ["nothing"]
    if ndim == 0:
        return ["everything", "nothing", "all entries", "no entries"]
    padded = "padded" in kind and "bag" not in kind and name.endswith("weight") and ndim == 2
    rows_only = family.matrices or (KINDS[kind].sparse and family.sparse == "only")
    return [
        selection
        for selection in SELECTIONS
        if (padded or "padding" not in selection)
        and (in_float32 or "float32" not in selection)
        and not (rows_only and "entries" in selection)
    ]
