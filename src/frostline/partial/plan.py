"""What a plan says: which tensors learn, how much of each, and what an optimizer will keep for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostline.partial.optimizer_carry import carry

_ADAM = 2  # numbers that Adam keeps for each number that learns
_LISTED = 40  # a model with more tensors than this has its frozen ones summed up in one line


@dataclass(frozen=True)
class Line:
    """One tensor of a plan.

    Attributes:
        name: Its first name in the model.
        tied: Its other names: the same tensor.
        shape: Its shape.
        learns: "everything", "rows", "entries" or "nothing".
        count: How many rows or entries learn; None for "everything" and "nothing".
        learned: Numbers that learn.
        note: Why it cannot learn, where that is so.
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
        """Numbers in the tensor."""
        return math.prod(self.shape)


class Plan:
    """What learns in a model, as `train_only` carried it out. Print it to read it.

    Attributes:
        lines: One `Line` for each tensor, tied names together, in the model's order.
        moving: Names of modules that are frozen but whose running statistics move in train mode (BatchNorm).
        held: Names of modules whose running statistics are held.
    """

    def __init__(
        self,
        model: nn.Module,
        lines: Sequence[Line],
        moving: Sequence[str],
        held: Sequence[str],
        begins: Set[str] = frozenset(),
    ) -> None:
        self._model = model
        self._begins = set(begins)  # names of what learns now and did not before; no optimizer can hold it yet
        self.lines = tuple(lines)
        self.moving = tuple(moving)
        self.held = tuple(held)

    def parameters(self) -> list[nn.Parameter]:
        """The Parameters that learn, for an optimizer: those of `model.parameters()` with `requires_grad`."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def carry(self, optimizer: Optimizer, *others: Optimizer, group: int | None = None) -> None:
        """Let an optimizer that was made under an earlier plan, or none, go on under this one.

        It is changed in place, so schedulers and scalers that hold it go on too. Its groups hold what learns now, each
        tensor in the group that it was in, in the order of `parameters()`; the options of a group stay. What was there
        of another model stays as well. State goes with its entries, bit by bit:

        - entries that go on learning go on as if nothing had happened, under every optimizer that treats each number
          alone, and so under all of torch.optim but Muon, Adafactor and LBFGS;
        - entries that join a tensor of which others go on start with fresh state, but share what the optimizer keeps
          for the tensor as a whole: under Adam its count of steps, so their first moves are up to three times as long.
          `frostline.optim.RowAdamW` counts for each row, and its rows start afresh;
        - entries that are frozen lose their state, and never move again.

        Args:
            optimizer: The optimizer that holds what learned before.
            others: Further optimizers of the same model, all of them: what one of them holds stays with it.
            group: Index of the group of `optimizer` that gets what none of them holds. It may be left out for tensors
                that begin to learn with this plan, where there is one optimizer and one group.

        Raises:
            StaleOptimizerError: The optimizer is not this model's, or wraps another; or a tensor learns that none of
                them holds, and it is open where it belongs; or state mixes entries (the factors of Adafactor, the
                history of LBFGS) of a tensor of which other entries learn now. Nothing has changed then.
            ValueError: `group` is out of its range.
            PartialTensorError: The model is sharded (FSDP2).

        Cost: one copy of the state of what learns, and one step on a copy of it; where single entries learn, or did,
            some integers for each number of the tensor.

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
        carry(self._model, [optimizer, *others], group, self._begins)
        self._begins.clear()

    @property
    def learned(self) -> int:
        """Numbers that learn."""
        return sum(line.learned for line in self.lines)

    @property
    def total(self) -> int:
        """Numbers in the model's parameters, tied tensors counted once."""
        return sum(line.total for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values that `json.dumps` takes.

        Returns:
            `tensors`: name -> `tied`, `shape`, `learns`, `count`, `learned`, `total`, `adam`, `note`; then the sums
            `learned`, `total` and `adam` (numbers that Adam keeps); `statistics`: names `moving` and `held`.
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
            "statistics": {"moving": list(self.moving), "held": list(self.held)},
        }

    def __str__(self) -> str:
        listed = [line for line in self.lines if line.learned or line.note or len(self.lines) <= _LISTED]
        rest = [line for line in self.lines if line not in listed]
        cells = [("tensor", "shape", "what learns", "numbers", "at Adam")]
        cells += [_cells(line) for line in listed]
        if rest:
            frozen = f"{sum(line.total for line in rest):,} numbers"
            cells.append((f"({len(rest)} more tensors)", frozen, "nothing", "0", "0"))
        cells.append(
            ("total", f"{self.total:,} numbers", _share(self), f"{self.learned:,}", f"{_ADAM * self.learned:,}")
        )
        text = _table(cells)
        if self.moving:
            text += (
                f"\nRunning statistics still move in train mode: {_listing(self.moving)}. "
                "train_only(..., hold_statistics=True) holds them."
            )
        if self.held:
            text += f"\nRunning statistics held: {_listing(self.held)}."
        return text

    __repr__ = __str__


def _cells(line: Line) -> tuple[str, str, str, str, str]:
    name = line.name + (f" (= {', '.join(line.tied)})" if line.tied else "")
    whole = line.shape[0] if line.learns == "rows" else line.total
    what = line.learns if line.count is None else f"{line.count:,} of {whole:,} {line.learns}"
    shape = " x ".join(f"{n:,}" for n in line.shape) or "scalar"
    note = f" ({line.note})" if line.note else ""
    return name, shape, what + note, f"{line.learned:,}", f"{_ADAM * line.learned:,}"


def _share(plan: Plan) -> str:
    if not plan.learned:
        return "nothing learns"
    return f"{100 * plan.learned / plan.total:.3g} % learns"


def _table(cells: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        texts = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join([*texts, *numbers]).rstrip())
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _listing(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
