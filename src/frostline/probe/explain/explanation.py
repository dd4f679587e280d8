"""What `explain` found, as a table for people and as plain values for programs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frostline.printing import listed, shortened, text_table
from frostline.probe.explain.path import Path
from frostline.probe.explain.verdicts import (
    ALARMS,
    FROZEN,
    FROZEN_BY_PLAN,
    LEARNS,
    LEARNS_IN_PART,
    LISTED_TWICE,
    TIED,
    VERDICTS,
)

_MOST_NAMES = 3  # names that one line of the table shows
_MOST_BUFFERS = 4
_WIDEST = 60  # cells of a reason in the table
_MOST_LINES = 8  # tensors that learn, each on a line of its own; more are summed up in one line


@dataclass(frozen=True)
class Finding:
    """What applies to one parameter of a model.

    Attributes:
        name: Its first name in the model.
        tied: Its other names: the same tensor.
        shape: Its shape; for a partial tensor the whole tensor's.
        verdicts: Every verdict that applies, the one that counts first.
        reason: Why, in one line.
        where: The line of code that is the reason, as `file:line`; None if no line is.
        groups: Of a partial tensor: verdict -> how many of its rows, or entries, it applies to; None for others.
        listed_twice: Whether optimizers list it more than once.
        hints: Guesses from the size of its gradient: "noise", "partly cut".
    """

    name: str
    tied: tuple[str, ...]
    shape: tuple[int, ...]
    verdicts: tuple[str, ...]
    reason: str
    where: str | None = None
    groups: Mapping[str, int] | None = None
    listed_twice: bool = False
    hints: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The verdict that counts."""
        return self.verdicts[0]

    @property
    def notes(self) -> list[str]:
        """The other verdicts that apply, `hints`, "listed twice", and "tied" for a tensor of several names."""
        return [
            *self.verdicts[1:],
            *self.hints,
            *([LISTED_TWICE] if self.listed_twice else []),
            *([TIED] if self.tied else []),
        ]

    @property
    def is_alarm(self) -> bool:
        """Whether it does not train as it stands."""
        return self.verdict in ALARMS


class Explanation:
    """What trains in a model, what does not, and why. Print it to read it.

    Attributes:
        findings: One `Finding` for each parameter, in the model's order, tied names together.
        buffers: Names of buffers that move although nothing in their module learns (BatchNorm's statistics).
        remarks: What else was seen, one line each.
        path: The way from the loss to the parameter that `path_to` named; None if it named none.
        graph: With `path_to`, every call between the parameters and the loss, which TensorBoard shows as a graph.
    """

    def __init__(
        self,
        findings: Sequence[Finding],
        buffers: Sequence[str],
        remarks: Sequence[str],
        path: Path | None = None,
        graph: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.path, self.graph = path, tuple(graph)
        self.findings = tuple(findings)
        self.buffers = tuple(buffers)
        self.remarks = tuple(remarks)

    @property
    def alarms(self) -> list[str]:
        """The names of the parameters that do not train as they stand, worst first: these fail a build."""
        return [finding.name for finding in self._worst_first() if finding.is_alarm]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the findings as plain values that `json.dumps` takes.

        Returns:
            Name -> `verdict`, `reason`, `where` ("file:line" or None), `notes` (other verdicts that apply, "noise",
            "partly cut", "tied", "listed twice"), `tied` (the other names), `groups` (of a partial tensor: verdict ->
            how many of its rows or entries it applies to; None for others).
        """
        return {
            finding.name: {
                "verdict": finding.verdict,
                "reason": finding.reason,
                "where": finding.where,
                "notes": finding.notes,
                "tied": list(finding.tied),
                "groups": None if finding.groups is None else dict(finding.groups),
            }
            for finding in self.findings
        }

    def __str__(self) -> str:
        parts = [self._headline()]
        if self.findings:
            parts.append(text_table([("verdict", "tensor", "why", "where"), *self._rows()]))
        remarks = list(self.remarks)
        if self.buffers:
            names = listed(self.buffers, _MOST_BUFFERS)
            remarks.insert(0, f"Buffers of frozen modules that move all the same: {names}.")
        if remarks:
            parts.append("\n".join(remarks))
        if self.path is not None:
            parts.append(str(self.path))
        return "\n\n".join(parts)

    __repr__ = __str__

    def _headline(self) -> str:
        if not self.findings:
            return "The model has no parameters."
        alarms = len(self.alarms)
        learn = sum(finding.verdict in (LEARNS, LEARNS_IN_PART) for finding in self.findings)
        count = f"{alarms} of {len(self.findings)} tensors do not train as they stand" if alarms else "No alarm"
        return f"{count}; {learn} learn, {len(self.findings) - learn - alarms} frozen."

    def _worst_first(self) -> list[Finding]:
        """Return the alarms in the order of VERDICTS, then the others: what learns before what is frozen."""
        rank = {verdict: index for index, verdict in enumerate(VERDICTS)}
        return sorted(
            self.findings,
            key=lambda finding: (not finding.is_alarm, rank[finding.verdict] * (1 if finding.is_alarm else -1)),
        )

    def _rows(self) -> Iterable[tuple[str, str, str, str]]:
        """Yield the rows of the table, one for each reason: tensors that share it are listed together."""
        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self._worst_first():
            notes = [note for note in finding.notes if note != TIED]
            why = shortened(finding.reason.partition(" (in ")[0], _WIDEST) + (f" ({'; '.join(notes)})" if notes else "")
            groups.setdefault((finding.verdict, why, finding.where or ""), []).append(finding)
        for (verdict, why, where), findings in groups.items():
            if len(findings) > _MOST_LINES or verdict in ALARMS or verdict in (FROZEN, FROZEN_BY_PLAN):
                yield ("! " if verdict in ALARMS else "  ") + verdict, self._names(findings), why, where
            else:
                for finding in findings:
                    yield "  " + verdict, _all_names(finding), why, where

    def _names(self, findings: Sequence[Finding]) -> str:
        """Return their names; `encoder.* (26)` if they are all that the model has under that name."""
        parts = zip(*(finding.name.split(".") for finding in findings), strict=False)
        shared = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, parts)]
        prefix = ".".join([*shared, ""])
        under_it = sum(finding.name.startswith(prefix) for finding in self.findings)
        if len(findings) > 2 and under_it == len(findings):
            return f"{prefix}* ({len(findings)})"
        if len(findings) <= _MOST_NAMES:
            return ", ".join(map(_all_names, findings))
        return listed((finding.name for finding in findings), _MOST_NAMES - 1)


def _all_names(finding: Finding) -> str:
    return finding.name + (f" (= {', '.join(finding.tied)})" if finding.tied else "")
