"""Gradients that are faint beside those of the other tensors: rounding noise, or what is left of one that was cut.

Both are guesses by size, and said to be: they are notes, never alarms. A bias before BatchNorm has a gradient of noise
in every healthy model.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from frostline.probe.explain.backward import Watched
from frostline.probe.explain.reasons import called
from frostline.probe.explain.verdicts import NOISE, PARTLY_CUT

_FAINT = 1e-3  # of the median of the others: below it, a cut on another way is worth a note
_MOST_NOISE = 1e-4
# Calls that cut what could flow. An index from `topk` or `argmax` is lost on purpose, beside the value that flows.
_CUTTING = {"detach", "detach_", ".data", "no_grad", "inference_mode", "stop_gradient", "nn.Parameter", "item", "numpy"}


@dataclass(frozen=True)
class Faint:
    """What is said of a faint gradient.

    Attributes:
        note: "noise" or "partly cut".
        reason: One sentence.
        where: The line that cuts another way, as `file:line`, or None.
    """

    note: str
    reason: str
    where: str | None


def faint_gradients(watched: Watched, dtypes: Mapping[int, torch.dtype]) -> dict[int, Faint]:
    """Return index of a tensor -> what is said of its gradient, for those of `dtypes` that are faint."""
    sizes = {
        index: status.largest
        for index in dtypes
        if (status := watched.gradients[index]).kind == "nonzero" and not status.not_finite and status.largest
    }
    if len(sizes) < 2:
        return {}
    median = statistics.median(sizes.values())
    faint = {index: size for index, size in sizes.items() if size < _FAINT * median}
    if not faint:
        return {}
    found: dict[int, Faint] = {}
    every = watched.loss.cuts(sum(1 << index for index in faint), on_every_way=True)
    cuts = {index: [line for line in lines if line.call in _CUTTING] for index, lines in every.items()}
    for index, size in faint.items():
        compared = f"its largest gradient is {size:.0e}, the median of all {median:.0e}"
        dtype = dtypes[index]
        noise = min(8 * torch.finfo(dtype).eps, _MOST_NOISE) if dtype.is_floating_point else 0.0
        if cuts.get(index):
            found[index] = Faint(PARTLY_CUT, f"{called(cuts[index])}; {compared}", cuts[index][0].where)
        elif size < noise * median:
            found[index] = Faint(NOISE, f"{compared}: rounding noise, as a guess", None)
    return found
