"""One explanation of a step that several processes took together, each with its own batch or its own shards.

A tensor that gets no gradient from the batch of one process learns by that of another. Every other alarm counts,
whichever process raises it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from frostline.probe.explain.explanation import Explanation
from frostline.probe.explain.verdicts import (
    ALARMS,
    CUT,
    LEARNS,
    LEARNS_IN_PART,
    MOVES_WITHOUT_GRADIENT,
    UNUSED,
    VERDICTS,
    ZERO_GRADIENT,
    Finding,
)

_BY_BATCH = {CUT, UNUSED, ZERO_GRADIENT, MOVES_WITHOUT_GRADIENT}  # what another process may make good


def of_all_ranks(explanation: Explanation) -> Explanation:
    """Return the explanation of all processes, the same in each. Every process must call this; one alone need not."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return explanation
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, explanation)
    return merged(parts)


def merged(explanations: Sequence[Explanation]) -> Explanation:
    """Return one explanation of those of rank 0, 1, ... of the same step."""
    by_name: dict[str, dict[int, Finding]] = {}
    for rank, explanation in enumerate(explanations):
        for finding in explanation.findings:
            by_name.setdefault(finding.name, {})[rank] = finding
    remarks = list(explanations[0].remarks)
    for rank, explanation in enumerate(explanations[1:], start=1):
        remarks += [f"Rank {rank}: {remark}" for remark in explanation.remarks if remark not in explanations[0].remarks]
    buffers = dict.fromkeys(name for explanation in explanations for name in explanation.buffers)
    raised = next((explanation.raised for explanation in explanations if explanation.raised), "")
    return Explanation([_merged(of_ranks) for of_ranks in by_name.values()], list(buffers), remarks, raised=raised)


def _merged(of_ranks: dict[int, Finding]) -> Finding:
    verdicts = {finding.verdict for finding in of_ranks.values()}
    first = next(iter(of_ranks.values()))
    if len(verdicts) == 1:
        return first
    learns = verdicts & {LEARNS, LEARNS_IN_PART}
    if learns and verdicts <= {*learns, *_BY_BATCH}:
        counts = next(finding for finding in of_ranks.values() if finding.verdict in learns)
        others = [f"{finding.verdict} on rank {rank}" for rank, finding in of_ranks.items() if finding.is_alarm]
        return replace(counts, reason="; ".join(filter(None, [counts.reason, *others])))
    rank, counts = min(
        of_ranks.items(), key=lambda each: (each[1].verdict not in ALARMS, VERDICTS.index(each[1].verdict))
    )
    return replace(counts, reason=f"{counts.reason} (on rank {rank})".strip())
