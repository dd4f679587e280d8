"""Compare what the processes of one training found: by their store of keys and values, not by a collective.

A collective would wait for processes that may be elsewhere by then, as where only the first one evaluates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from frostline.printing import listed
from frostline.probe.explain.explanation import Explanation

_WAIT = 10.0  # seconds
_MOST = 4  # parameters that a line names


def rank() -> int | None:
    """Return the number of this process; None outside of torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else None


def differences(found: Mapping[str, Explanation]) -> list[str]:
    """Return in the first process how the others' verdicts differ, a line for each of those; in the others nothing.

    Args:
        found: Name of a model -> its explanation, in this process.
    """
    number = rank()
    if number is None or dist.get_world_size() == 1:
        return []
    verdicts = {
        f"{model.partition(': ')[0]}.{finding.name}": finding.verdict
        for model, explanation in found.items()
        for finding in explanation.findings
    }
    store = dist.distributed_c10d._get_default_store()
    if number:
        store.set(f"frostline/{number}", json.dumps(verdicts))
        return []
    return [line for other in range(1, dist.get_world_size()) if (line := _difference(store, other, verdicts))]


def _difference(store: Any, other: int, verdicts: Mapping[str, str]) -> str:
    key, deadline = f"frostline/{other}", time.monotonic() + _WAIT
    while not (there := store.check([key])) and time.monotonic() < deadline:
        time.sleep(0.02)
    if not there:
        return f"Rank {other} has not come to the end of this step, so it is not known whether it agrees."
    theirs: dict[str, str] = json.loads(store.get(key))
    unlike = [name for name in dict.fromkeys([*verdicts, *theirs]) if verdicts.get(name) != theirs.get(name)]
    if not unlike:
        return ""
    lines = (f"{name}: {theirs.get(name, 'not there')} (here: {verdicts.get(name, 'not there')})" for name in unlike)
    return f"Rank {other} does not agree: {listed(lines, _MOST)}."
