"""What `explain` found, as a table for people and as plain values for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from frostline.probe.explain.path import Path
from frostline.probe.explain.table import text_of, worst_first
from frostline.probe.explain.verdicts import Finding


class Explanation:
    """What trains in a model, what does not, and why. Print it to read it.

    Attributes:
        findings: One `Finding` for each parameter, in the model's order, tied names together.
        buffers: Names of buffers that move although nothing in their module learns (BatchNorm's statistics).
        remarks: What else was seen, one line each.
        raised: What the step or the watched block raised, in a sentence; nothing is proven to learn then. Else empty.
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
        raised: str = "",
    ) -> None:
        self.raised = raised
        self.path, self.graph = path, tuple(graph)
        self.findings = tuple(findings)
        self.buffers = tuple(buffers)
        self.remarks = tuple(remarks)

    @property
    def alarms(self) -> list[str]:
        """The names of the parameters that do not train as they stand, worst first: these fail a build."""
        return [finding.name for finding in worst_first(self.findings) if finding.is_alarm]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the findings as plain values that `json.dumps` takes.

        Returns:
            Name -> `verdict`, `reason`, `where` ("file:line" or None), `notes` (other verdicts that apply, "noise",
            "partly cut", "tied", "listed twice", "step skipped", "step raised"), `fix` (what to type, of an alarm),
            `tied` (the other names), `groups` (of a partial tensor: verdict -> how many of its rows or
            entries it applies to; None for others).
        """
        return {
            finding.name: {
                "verdict": finding.verdict,
                "reason": finding.reason,
                "where": finding.where,
                "notes": finding.notes,
                "fix": finding.fix,
                "tied": list(finding.tied),
                "groups": None if finding.groups is None else dict(finding.groups),
            }
            for finding in self.findings
        }

    def __str__(self) -> str:
        return text_of(self.findings, self.buffers, self.remarks, self.raised, self.path)

    __repr__ = __str__
