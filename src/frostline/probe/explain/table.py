"""An explanation as text: what is wrong and what to type first, then what learns and what is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from frostline.printing import listed, shortened, text_table
from frostline.probe.explain.blocks import blocks_of
from frostline.probe.explain.fixes import page_of
from frostline.probe.explain.path import Path
from frostline.probe.explain.verdicts import (
    FROZEN,
    FROZEN_BY_PLAN,
    LEARNS,
    LEARNS_IN_PART,
    TIED,
    VERDICTS,
    Finding,
)

_MOST_NAMES = 3  # names in one line
_MOST_BUFFERS = 4
_WIDEST, _WIDEST_LINE = 60, 150  # cells of a reason in the table, and on a line of its own
_MOST_LINES = 8  # tensors that learn, each on a line of its own; more are grouped by block
_MOST_BLOCKS = 24


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return the alarms in the order of VERDICTS, then the others: what learns before what is frozen."""
    rank = {verdict: index for index, verdict in enumerate(VERDICTS)}
    return sorted(
        findings,
        key=lambda finding: (not finding.is_alarm, rank[finding.verdict] * (1 if finding.is_alarm else -1)),
    )


def text_of(
    findings: Sequence[Finding], buffers: Sequence[str], remarks: Sequence[str], raised: str, path: Path | None
) -> str:
    """Return an explanation as text; see Explanation for the arguments."""
    names = [finding.name for finding in findings]
    alarms = [finding for finding in worst_first(findings) if finding.is_alarm]
    others = [finding for finding in worst_first(findings) if not finding.is_alarm]
    parts = [_headline(findings, raised), *_alarms(alarms, names)]
    if others:
        parts.append(text_table([("verdict", "tensor", "why", "where"), *_quiet_rows(others, names)]))
    remarks = list(remarks)
    if buffers:
        remarks.insert(0, f"Buffers of frozen modules that move all the same: {listed(buffers, _MOST_BUFFERS)}.")
    if remarks:
        parts.append("\n".join(remarks))
    if path is not None:
        parts.append(str(path))
    return "\n\n".join(parts)


def _headline(findings: Sequence[Finding], raised: str) -> str:
    alarms = sum(finding.is_alarm for finding in findings)
    learn = sum(finding.verdict in (LEARNS, LEARNS_IN_PART) for finding in findings)
    count = f"{alarms} of {len(findings)} tensors do not train as they stand" if alarms else "No alarm"
    count = f"{count}; {learn} {'got a gradient' if raised else 'learn'}, {len(findings) - learn - alarms} frozen."
    if raised:
        unfinished = (
            "So nothing is known of what learns." if not findings else f"So nothing is proven to learn. {count}"
        )
        return f"{raised}\n{unfinished}"
    return count if findings else "The model has no parameters."


def _alarms(findings: Sequence[Finding], every: Sequence[str]) -> Iterable[str]:
    """Yield a paragraph for each reason: the tensors, why, where, and with the first of its kind what to type."""
    said = set()
    for group in _grouped(findings):
        first = group[0]
        lines = [f"! {first.verdict}: {_in_one_line(group, every, 2)}", f"  why    {_why(first, _WIDEST_LINE)}"]
        lines += [f"  where  {first.where}"] if first.where else []
        if (first.verdict, first.fix) not in said:
            lines += [f"  fix    {first.fix}", f"  page   {page_of(first.verdict)}"]
        said.add((first.verdict, first.fix))
        yield "\n".join(lines)


def _quiet_rows(findings: Sequence[Finding], every: Sequence[str]) -> Iterable[tuple[str, str, str, str]]:
    """Yield the rows of the table of what learns, each tensor or block of a long model, and of what is frozen."""
    for group in _grouped(findings):
        first = group[0]
        why, where = _why(first, _WIDEST), first.where or ""
        if first.verdict in (FROZEN, FROZEN_BY_PLAN):
            names = [_in_one_line(group, every, 1)]
        elif len(group) <= _MOST_LINES:
            names = [_all_names(finding) for finding in group]
        else:
            names = [name for name, _ in _block_names(group, every, _MOST_BLOCKS)]
        for name in names:
            yield f"  {first.verdict}", name, why, where


def _grouped(findings: Sequence[Finding]) -> Iterable[list[Finding]]:
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.verdict, _why(finding, _WIDEST_LINE), finding.where or ""), []).append(finding)
    return groups.values()


def _why(finding: Finding, most: int) -> str:
    """Return the reason, cut to `most` cells, and the notes."""
    reason = shortened(finding.reason.partition(" (in ")[0], most)
    notes = "; ".join(note for note in finding.notes if note != TIED)
    return f"{reason} ({notes})".strip() if notes else reason


def _in_one_line(findings: Sequence[Finding], every: Sequence[str], first: int) -> str:
    """Return the names of tensors or blocks, the `first` of them where they are many."""
    if len(findings) <= _MOST_NAMES:
        return ", ".join(map(_all_names, findings))
    names, counts = zip(*_block_names(findings, every, 0), strict=True)
    shown = len(names) if len(names) <= _MOST_NAMES else first
    more = sum(counts[shown:])
    return ", ".join(names[:shown]) + (f" and {more:,} more tensors" if more else "")


def _block_names(findings: Sequence[Finding], every: Sequence[str], most: int) -> list[tuple[str, int]]:
    """Return the names of blocks, and how many tensors each stands for."""
    named = {finding.name: finding for finding in findings}
    return [
        (_all_names(named[block.label]) if block.count == 1 else f"{block.label} ({block.count} tensors)", block.count)
        for block in blocks_of(list(named), every, most)
    ]


def _all_names(finding: Finding) -> str:
    return finding.name + (f" (= {', '.join(finding.tied)})" if finding.tied else "")
