"""By what path does a parameter learn? The calls on the shortest way from the loss back to it, with the user's lines.

The idea: the trace knows for each tensor what it was computed from, so a search from the loss backwards finds the
parameter. A way along which the gradient comes is preferred; if there is none, the way of the value is shown, and the
call at which the gradient ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from frostline.printing import text_table
from frostline.probe.trace.provenance import Provenance
from frostline.probe.trace.source_line import SourceLine


@dataclass(frozen=True)
class Call:
    """One call on the way.

    Attributes:
        call: What was called, such as `linear`.
        where: The user's line, as `file:line`; None if all of the stack is torch's.
        source: The text of that line.
        gradient: Whether what it returns has a gradient that reaches the parameter.
    """

    call: str
    where: str | None
    source: str
    gradient: bool


@dataclass(frozen=True)
class Path:
    """The way from the loss back to a parameter.

    Attributes:
        name: The parameter.
        calls: The last that ran first; none if the value of the parameter does not reach the loss.
        requires_grad: Whether the parameter does.
    """

    name: str
    calls: tuple[Call, ...]
    requires_grad: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: `name`, `calls`, `end` and `cut`."""
        return {"name": self.name, "calls": [asdict(call) for call in self.calls], "end": self.end, "cut": self.cut}

    @property
    def cut(self) -> int | None:
        """The index of the call at which the gradient ends on its way from the loss; None if none does."""
        lost = [index for index, call in enumerate(self.calls) if not call.gradient]
        return lost[-1] if lost and self.requires_grad else None

    @property
    def end(self) -> str:
        """Why no gradient comes along this way; empty if one does."""
        if not self.calls:
            return "its value does not reach the loss"
        if not self.requires_grad:
            return "it requires no gradient"
        if self.cut is None:
            return ""
        call = self.calls[self.cut]
        return f"no gradient: {call.call} cuts it" + (f" in {call.where}" if call.where else "")

    def __str__(self) -> str:
        rows = [("from the loss to " + self.name, "where", "line"), ("loss", "", "")]
        rows += [(f"<- {call.call}", call.where or "", call.source) for call in self.calls]
        rows.append((f"<- {self.name}", "", f"({self.end})" if self.end else ""))
        return text_table(rows)


def path_to(name: str, index: int, loss: Provenance, calls: Mapping[Provenance, SourceLine | None]) -> Path:
    """Return the shortest way from the loss back to a parameter.

    Args:
        name: The parameter.
        index: Its number in the masks of the trace.
        loss: The provenance of the loss.
        calls: The line of each call that made a provenance.
    """
    bit = 1 << index
    ends: Sequence[Mapping[Provenance, SourceLine | None]] = (calls, {})
    ways = (_search(loss, bit, mask, no_end) for mask in ("gradient", "value") for no_end in ends)
    way = next(filter(None, ways), [])
    learns = bool(way) and bool(way[-1].gradient & bit)
    return Path(name, tuple(_call(calls[step], step, bit) for step in way if step in calls), learns or not way)


def _search(
    loss: Provenance, bit: int, mask: str, no_end: Mapping[Provenance, SourceLine | None]
) -> Sequence[Provenance]:
    """Return the nodes from the loss to the parameter along which `mask` holds it; empty if there is no way.

    A call without parents, one of `no_end`, is a guess of the trace (of a tensor that came unseen): it may end a way
    only where no other does.
    """
    came_from: dict[Provenance, Provenance | None] = {loss: None}
    waiting = deque([loss] if getattr(loss, mask) & bit else [])
    while waiting:
        node = waiting.popleft()
        parents = [parent for parent in node.parents if getattr(parent, mask) & bit]
        if not node.parents and node not in no_end:
            way: list[Provenance] = []
            step: Provenance | None = node
            while step is not None:
                way.append(step)
                step = came_from[step]
            return way[::-1]
        for parent in parents:
            if parent not in came_from:
                came_from[parent] = node
                waiting.append(parent)
    return []


def _call(line: SourceLine | None, step: Provenance, bit: int) -> Call:
    flows = bool(step.gradient & bit)
    return Call("?", None, "", flows) if line is None else Call(line.call, line.where, line.source, flows)
