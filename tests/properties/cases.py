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
SOAK = 10_000  # from this many cases on, compiled ones too are drawn with all that other code may do
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
# What is common comes up more often, so that in most cases of one tensor something of it learns.
SELECTIONS = (
    *("rows", "entries", "everything", "all rows", "rows", "entries", "rows, padding too", "all entries") * 2,
    *("nothing", "no rows", "no entries", "rows in float32", "entries in float32"),
)
CALLS = ("plain", "functional", "checkpoint", "checkpoint, reentrant")
TOGGLES = ("none", "none", "all on", "each parameter on", "each module on", "off and on", "weights off and on")
LOSSES = (
    "times detached",
    "where detached",
    "penalty on detached",
    "stacked",
    "divergence",
    "over its norm",
    "times data",
)
HOOKS = ("on gradients", "accumulated", "before the plan")
HELD = ("weights", "views", "detached", "numpy", "dlpack")
WRITES = (
    *(
        "learned data",
        "a row",
        "an entry",
        "data times",
        "through detach",
        "across",
        "copy",
        "chunks",
        "set data",
        "out",
    ),
    *("iterated", "every parameter"),
)
READINGS = ("raw", "first parameter", "numpy", "dlpack", "storage", "state dict")
LOADED = ("load in place", "another dtype and back")  # what changes every value of a model that goes on
BYTES = 64


@dataclass(frozen=True)
class Case:
    """One training run, drawn.

    Attributes:
        kind: A key of KINDS.
        selections: One of SELECTIONS for each tensor, in the order of `named_parameters()`.
        optimizer: A key of FAMILIES.
        given: What the optimizer is given: "learned", or "model", the frozen parts too.
        oracle: "restored": the whole tensors learn, and frozen entries are put back after each step; "apart": the same
            optimizer on the learned part as a tensor of its own.
        values: The seed of weights, inputs, rows and masks.
        call: How the module is called: "plain", "functional", "checkpoint", "checkpoint, reentrant", or compiled by
            "aot_eager" or "inductor".
        between: What happens between the second step and the third.
        toggle: Which `requires_grad` other code sets, of TOGGLES, after the first step and after the third.
        loss: What is added to the loss: "nothing", or a term of LOSSES that mixes each weight with its detached self.
        hook: What the parameters have: "none", or one of HOOKS.
        held: What was taken from the modules before the first step and is read to the end: "nothing", or one of HELD.
        write: How other code writes to the weights before the second and the fourth step: "nothing", or of WRITES.
        reading: How the memory is read after each step: "nothing", or one of READINGS.
        shared: Whether the memory is shared with other processes.
        overflow: The step whose loss is infinite; -1 for none.
    """

    kind: str
    selections: tuple[str, ...]
    optimizer: str
    given: str
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
    toggle: str
    loss: str
    hook: str
    held: str
    write: str
    reading: str
    shared: bool
    double_backward: bool
    values: int


COMPILED_STEPS = ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam")


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


def cases(kinds: Sequence[str], calls: Sequence[str], compiled_step: bool = False) -> st.SearchStrategy[Case]:
    """Draw a legal case of these kinds, called in one of these ways."""
    return st.binary(min_size=BYTES, max_size=BYTES).map(lambda raw: decode(Picker(raw), kinds, calls, compiled_step))


def decode(pick: Picker, kinds: Sequence[str], calls: Sequence[str], compiled_step: bool = False) -> Case:
    """A legal case; what torch itself refuses for a plain module, or does wrong there, is left out."""
    kind = pick(kinds)
    module, call = KINDS[kind], pick(calls)
    optimizer = pick(COMPILED_STEPS if compiled_step else _optimizers_for(kind))
    family = FAMILIES[optimizer]
    dtype = pick(_dtypes_for(kind, optimizer))
    half = dtype in ("bfloat16", "float16")
    between = pick(["nothing", "plan again", "deepcopy", "save and load", *LOADED])
    if optimizer == "NAdam" and dtype != "float32" and between in ("deepcopy", "save and load"):
        between = "plan again"  # its load_state_dict casts the product of its momenta, and goes on otherwise
    scaler: bool = pick([False, True]) and dtype != "float16" and not family.closure and not module.sparse
    scaler &= not compiled_step  # it calls the step that is not compiled
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
    in_float32 = half and between not in ("save and load", *LOADED) and not family.closure
    chosen = tuple(pick(_selections_for(kind, name, ndim, family, in_float32)) for name, ndim in tensors_of(kind))
    wider = any("float32" in selection for selection in chosen)
    given, toggle = pick(["learned", "learned", "model"]), pick(TOGGLES)
    takes_all = not (family.matrices or family.closure)  # Muon wants matrices; LBFGS would write to the frozen ones
    loss, hook = pick([*["nothing"] * 5, *LOSSES]), pick(["none", "none", *HOOKS])
    if call == "checkpoint, reentrant" and loss != "nothing":
        hook = "none"  # such a backward adds up twice, in an order that torch leaves open
    compiled = compiled_step or call in ("aot_eager", "inductor")
    if compiled and toggle != "none" and hook == "before the plan":
        hook = "none"  # torch calls hooks of parameters that a compiled graph does not need, with None
    held, write = pick(["nothing", *HELD]), pick([*["nothing"] * 6, *WRITES])
    if wider and write != "learned data":
        write = "nothing"  # what of a learned number is kept depends on how it rounds
    schedule = pick([False, True])
    if compiled and CASES < SOAK:  # each of these compiles again, for seconds
        toggle, hook, write, schedule = "none", "none", "nothing", schedule and not compiled_step
        between = "nothing" if compiled_step else between
    average: bool = pick([False, True]) and between not in LOADED
    if average:
        write = "nothing"  # the average of a frozen number that is written to moves
    return Case(
        kind=kind,
        selections=chosen,
        optimizer=optimizer,
        given=given if takes_all else "learned",
        oracle="apart" if family.whole or wider else oracle,
        dtype=dtype,
        decay=pick([0.0, 0.1]) if takes_decay else 0.0,
        momentum=pick([0.0, 0.5, 0.9] if optimizer == "SGD" else [0.5, 0.9]),
        kernel="compiled" if compiled_step else pick(kernels),
        schedule=schedule,
        clip=pick(["none", "ours"] if module.sparse else ["none", "norm", "ours", "value"]),
        accumulate=pick([1, 2]),
        set_to_none=pick([True, False]),
        autocast=autocast,
        scaler=scaler,
        overflow=pick([-1, -1, 1]) if scaler else -1,
        call=call,
        average=average,
        between=between,
        toggle=toggle,
        loss="nothing" if module.sparse else loss,  # its gradient is dense
        hook=hook,
        held=held,
        write=write,
        reading=pick(["nothing", *READINGS]),
        shared=pick([False, False, True]) and DEVICE == "cpu",
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
