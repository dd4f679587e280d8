"""What `explain` found, as a table for people, plain values for programs, and HTML."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frostline.probe.explain.verdicts import ALARMS, BY_PLAN, FROZEN, IN_PART, LEARNS, TIED, VERDICTS

_NAMES = 3  # names that one line of the table shows
_WIDEST = 60  # characters of a reason in the table
_SUMMED_UP = 8  # tensors of one verdict that is no alarm: more are summed up in one line


@dataclass(frozen=True)
class Finding:
    """What holds for one parameter of a model.

    Attributes:
        name: Its first name in the model.
        tied: Its other names: the same tensor.
        shape: Its shape; for a partial tensor the whole tensor's.
        words: Every word that holds for it, the verdict first.
        reason: Why, in one line.
        where: The line of code that is the reason, as `file:line`; None where no line is.
        groups: Of a partial tensor: verdict -> how many of its rows, or entries, it holds for; None for others.
    """

    name: str
    tied: tuple[str, ...]
    shape: tuple[int, ...]
    words: tuple[str, ...]
    reason: str
    where: str | None = None
    groups: Mapping[str, int] | None = None

    @property
    def verdict(self) -> str:
        """The word that counts."""
        return self.words[0]

    @property
    def notes(self) -> list[str]:
        """The other words that hold, and "tied" for a tensor of several names."""
        return [*self.words[1:], *([TIED] if self.tied else [])]

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
    """

    def __init__(self, findings: Sequence[Finding], buffers: Sequence[str], remarks: Sequence[str]) -> None:
        self.findings = tuple(findings)
        self.buffers = tuple(buffers)
        self.remarks = tuple(remarks)

    @property
    def alarms(self) -> list[str]:
        """The names of the parameters that do not train as they stand, worst first: what fails a build."""
        return [finding.name for finding in self._worst_first() if finding.is_alarm]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The findings as plain values that `json.dumps` takes.

        Returns:
            Name -> `verdict` (one of the words), `reason`, `where` ("file:line" or None), `notes` (words that hold as
            well, "tied", "listed twice"), `tied` (the other names), `groups` (of a partial tensor: verdict -> how many
            of its rows or entries it holds for; None for others).
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

    def to_html(self) -> str:
        """A page of its own: the table, coloured by verdict, every line of code in full. No script, nothing to load."""
        counts = "".join(f"<li>{html.escape(line)}</li>" for line in self._below())
        rows = "".join(_html_row(finding) for finding in self._worst_first())
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>What trains</title><style>{_STYLE}</style>'
            f"<h1>{html.escape(self._headline())}</h1>"
            "<table><thead><tr><th>verdict<th>tensor<th>shape<th>why<th>where<th>notes</thead>"
            f"<tbody>{rows}</tbody></table><ul>{counts}</ul></html>"
        )

    def __str__(self) -> str:
        lines = [self._headline()]
        if self.findings:
            cells = [("verdict", "tensor", "why", "where"), *self._table()]
            widths = [max(len(row[column]) for row in cells) for column in range(4)]
            texts = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
            lines += ["", texts[0], "-" * max(map(len, texts)), *texts[1:]]
        below = self._below()
        return "\n".join([*lines, *([""] if below else []), *below])

    __repr__ = __str__

    def _headline(self) -> str:
        if not self.findings:
            return "The model has no parameters."
        alarms = len(self.alarms)
        learn = sum(finding.verdict in (LEARNS, IN_PART) for finding in self.findings)
        said = f"{alarms} of {len(self.findings)} tensors do not train as they stand" if alarms else "No alarm"
        return f"{said}; {learn} learn, {len(self.findings) - learn - alarms} frozen."

    def _worst_first(self) -> list[Finding]:
        rank = {verdict: place for place, verdict in enumerate(VERDICTS)}  # of what is no alarm the last comes first
        return sorted(
            self.findings, key=lambda one: (not one.is_alarm, rank[one.verdict] * (1 if one.is_alarm else -1))
        )

    def _table(self) -> Iterable[tuple[str, str, str, str]]:
        """One line for each reason: tensors that share it stand together."""
        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self._worst_first():
            notes = [note for note in finding.notes if note != TIED]
            why = _short(finding.reason.partition(" (in ")[0]) + (f" ({'; '.join(notes)})" if notes else "")
            groups.setdefault((finding.verdict, why, finding.where or ""), []).append(finding)
        for (verdict, why, where), some in groups.items():
            if len(some) > _SUMMED_UP or verdict in ALARMS or verdict in (FROZEN, BY_PLAN):
                yield ("! " if verdict in ALARMS else "  ") + verdict, self._listing(some), why, where
            else:
                for one in some:
                    yield "  " + verdict, _named(one), why, where

    def _listing(self, some: Sequence[Finding]) -> str:
        """Their names; `encoder.* (26)` where they are all there is under that name."""
        parts = zip(*(one.name.split(".") for one in some), strict=False)
        shared = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, parts)]
        prefix = ".".join([*shared, ""])
        if len(some) > 2 and sum(one.name.startswith(prefix) for one in self.findings) == len(some):
            return f"{prefix}* ({len(some)})"
        if len(some) <= _NAMES:
            return ", ".join(_named(one) for one in some)
        return f"{some[0].name}, {some[1].name} and {len(some) - 2} more"

    def _below(self) -> list[str]:
        lines = list(self.remarks)
        if self.buffers:
            names = ", ".join(self.buffers[:4]) + (f" and {len(self.buffers) - 4} more" if self.buffers[4:] else "")
            lines.insert(0, f"Buffers of frozen modules that move all the same: {names}.")
        return lines


def _named(finding: Finding) -> str:
    return finding.name + (f" (= {', '.join(finding.tied)})" if finding.tied else "")


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:80rem}"
    "h1{font-size:1.3rem}table{border-collapse:collapse}"
    "th,td{text-align:left;padding:.2rem .8rem;border-bottom:1px solid #8884;vertical-align:top}"
    ".alarm td:first-child{color:#c62828;font-weight:600}.learns td:first-child{color:#2e7d32}"
    ".frozen td:first-child{color:#1565c0}code{font-size:.9em}:root{color-scheme:light dark}"
)


def _html_row(finding: Finding) -> str:
    kind = "alarm" if finding.is_alarm else "learns" if finding.verdict in (LEARNS, IN_PART) else "frozen"
    shape = " x ".join(f"{n:,}" for n in finding.shape) or "scalar"
    cells = [finding.verdict, _named(finding), shape, finding.reason, finding.where or "", "; ".join(finding.notes)]
    return f'<tr class="{kind}">' + "".join(f"<td>{html.escape(cell)}" for cell in cells)
