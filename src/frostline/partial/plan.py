"""A plan: which tensors learn, how much of each, and how much state an optimizer will keep for it."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn
from torch.optim import Optimizer

from frostline.partial.model_tensors import ModelTensor
from frostline.partial.optimizer_carry import carry
from frostline.partial.quantized import full_shape, why_it_cannot_learn
from frostline.partial.tensor.indices import LearnedIndices
from frostline.printing import listed, text_table

_ADAM = 2  # values that Adam keeps for each parameter that learns
_SHORT = 40  # in a model with more tensors than this, the frozen ones are printed as one line


@dataclass(frozen=True)
class Line:
    """One tensor of a plan.

    Attributes:
        name: Its first name in the model.
        tied: Its other names, if it is tied.
        shape: Its shape; of packed 4-bit values, the shape that they stand for.
        learns: "everything", "rows", "entries" or "nothing".
        count: How many rows or entries learn; None for "everything" and "nothing".
        learned: How many of its parameters (single values) learn.
        note: Empty, or "mapped", or why it cannot learn.
    """

    name: str
    tied: tuple[str, ...]
    shape: tuple[int, ...]
    learns: str
    count: int | None
    learned: int
    note: str = ""

    @property
    def total(self) -> int:
        """How many values the tensor has."""
        return math.prod(self.shape)


def line_of(tensor: ModelTensor, learns: LearnedIndices | bool) -> Line:
    """Return the line of a tensor of which `learns` learns."""
    values = tensor.tensor
    shape = full_shape(values)
    kind, count, learned = "nothing", None, 0
    if isinstance(learns, LearnedIndices):
        kind, count = learns.kind, len(learns)
        learned = count * (values[0].numel() if learns.kind == "rows" else 1)
    elif learns:
        kind, learned = "everything", values.numel()
    note = "mapped" if tensor.mapped else ""
    if why := why_it_cannot_learn(values):
        adapted = tensor.name.endswith(".base_layer.weight")  # as PEFT calls what a LoRA stands beside
        note = f"{why}; a LoRA that is merged into it is rounded" if adapted else why
    return Line(tensor.name, tuple(tensor.names[1:]), shape, kind, count, learned, note)


class Plan:
    """What learns in a model, as `train_only` carried it out. Print it to read it.

    Attributes:
        lines: One `Line` for each tensor, tied names together, in the model's order.
        moving_stats: Names of modules that are frozen but whose running statistics (BatchNorm) change in train mode.
        frozen_stats: Names of modules whose running statistics are frozen too.
        without_optimizer: Names of tensors that did not learn before this plan and that `carry` has not yet given to an
            optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        lines: Sequence[Line],
        moving_stats: Sequence[str],
        frozen_stats: Sequence[str],
        newly_learning: Set[str] = frozenset(),
    ) -> None:
        self._model = model
        self.lines = tuple(lines)
        self.moving_stats = tuple(moving_stats)
        self.frozen_stats = tuple(frozen_stats)
        self.without_optimizer = frozenset(newly_learning)

    def parameters(self) -> list[nn.Parameter]:
        """Return the Parameters that learn, for an optimizer: those of `model.parameters()` with `requires_grad`."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def __iter__(self) -> NoReturn:
        """Raise: a plan that is given to an optimizer as it is would be iterated."""
        raise TypeError("a plan is not a list. Give an optimizer plan.parameters(); plan.lines has its tensors.")

    def carry(self, optimizer: Optimizer, *others: Optimizer, group: int | None = None) -> None:
        """Update an existing optimizer to this plan, keeping the state of entries that still learn.

        The optimizer is changed in place, so schedulers and scalers that hold it need no change. Its parameter groups
        get what learns now: each tensor in the group that it was in, in the order of `parameters()`. The options of a
        group stay, and so do parameters of other models. State stays with its entries, bit by bit:

        - entries that still learn continue as if nothing had changed. This holds for every optimizer that treats each
          value separately: all of torch.optim but Muon, Adafactor and LBFGS;
        - entries that join a tensor in which others still learn start with fresh state, but share what the optimizer
          keeps for the tensor as a whole. Under Adam that is the step count, so their first updates are up to three
          times as large. `frostline.optim.RowAdamW` counts the steps of each row, and new rows start at 0;
        - entries that are frozen lose their state, and never move again.

        Args:
            optimizer: The optimizer that held what learned before.
            others: All further optimizers of the same model. Each keeps the tensors that it holds.
            group: Index of the group of `optimizer` that gets the tensors that no optimizer holds. May be left out if
                there is one optimizer with one group, and none of these tensors learned before this plan.

        Raises:
            StaleOptimizerError: The optimizer is not this model's, or wraps another; or no optimizer holds a tensor
                that learns, and `group` is needed; or the optimizer keeps state that mixes entries (the factors of
                Adafactor, the history of LBFGS) of a tensor in which other entries learn now. No optimizer was changed.
            ValueError: `group` is out of range.
            PartialTensorError: The model is sharded (FSDP2).

        Cost: one copy of the state of what learns, and one step on a copy of it. Where single entries learn, now or
            before, some integers for each value of the tensor.

        Example:
            >>> import torch, frostline as fl
            >>> table = nn.Embedding(4, 1, _weight=torch.zeros(4, 1))
            >>> plan = fl.train_only(table, {"weight": fl.rows([2, 0])})
            >>> optimizer = torch.optim.SGD(plan.parameters(), lr=0.1, momentum=0.5)
            >>> def step():
            ...     optimizer.zero_grad()
            ...     table(torch.arange(4)).sum().backward()
            ...     optimizer.step()
            >>> step()
            >>> fl.train_only(table, {"weight": fl.rows([0, 1])}).carry(optimizer)  # 2 is frozen, 1 joins
            >>> step()
            >>> [round(value, 4) for value in table.weight.flatten().tolist()]
            [-0.25, -0.1, -0.1, 0.0]
        """
        before, self.without_optimizer = self.without_optimizer, frozenset()
        try:  # the optimizer is changed last: after that nothing can interrupt
            carry(self._model, [optimizer, *others], group, before)
        except BaseException:
            self.without_optimizer = before
            raise

    @property
    def learned(self) -> int:
        """How many parameters (single values) learn."""
        return sum(line.learned for line in self.lines)

    @property
    def total(self) -> int:
        """How many parameters (single values) the model has, tied tensors counted once."""
        return sum(line.total for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values that `json.dumps` takes.

        Returns:
            `tensors`: name -> `tied`, `shape`, `learns`, `count`, `learned`, `total`, `adam`, `note`; then the sums
            `learned`, `total` and `adam` (values that Adam keeps as state); `moving_stats` and `frozen_stats`.
        """
        return {
            "tensors": {
                line.name: {
                    "tied": list(line.tied),
                    "shape": list(line.shape),
                    "learns": line.learns,
                    "count": line.count,
                    "learned": line.learned,
                    "total": line.total,
                    "adam": _ADAM * line.learned,
                    "note": line.note,
                }
                for line in self.lines
            },
            "learned": self.learned,
            "total": self.total,
            "adam": _ADAM * self.learned,
            "moving_stats": list(self.moving_stats),
            "frozen_stats": list(self.frozen_stats),
        }

    def __str__(self) -> str:
        short = len(self.lines) <= _SHORT
        shown = [line for line in self.lines if short or line.learned or (line.note and "cannot" not in line.note)]
        rest = [line for line in self.lines if line not in shown]
        rows = [("tensor", "shape", "what learns", "parameters", "Adam state")]
        rows += [_cells(line) for line in shown]
        if rest:
            rows.append((f"({len(rest)} more tensors)", _values(sum(line.total for line in rest)), "nothing", "0", "0"))
        rows.append(("total", _values(self.total), _share(self), f"{self.learned:,}", f"{_ADAM * self.learned:,}"))
        text = text_table(rows, right=(3, 4), total=True)
        if self.moving_stats:
            text += (
                f"\nRunning statistics still change in train mode: {listed(self.moving_stats, most=6)}. "
                "train_only(..., freeze_running_stats=True) freezes them."
            )
        if self.frozen_stats:
            text += f"\nFrozen running statistics: {listed(self.frozen_stats, most=6)}."
        return text

    __repr__ = __str__


def _values(count: int) -> str:
    return f"{count:,} parameters"


def _cells(line: Line) -> tuple[str, str, str, str, str]:
    name = line.name + (f" (= {', '.join(line.tied)})" if line.tied else "")
    count = line.shape[0] if line.learns == "rows" else line.total
    what = line.learns if line.count is None else f"{line.count:,} of {count:,} {line.learns}"
    shape = " x ".join(f"{n:,}" for n in line.shape) or "scalar"
    note = f" ({line.note})" if line.note else ""
    return name, shape, what + note, f"{line.learned:,}", f"{_ADAM * line.learned:,}"


def _share(plan: Plan) -> str:
    if not plan.learned:
        return "nothing learns"
    return f"{100 * plan.learned / plan.total:.3g} % learns"


__test__ = {"Plan.carry": Plan.carry}  # doctest would miss it: the package sets `Plan.__module__`, for pickles
