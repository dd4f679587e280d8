"""Why a verdict applies, in one sentence, and the line of the user's code that causes it."""

from __future__ import annotations

from collections.abc import Sequence

from frostline.partial.model_tensors import ModelTensor
from frostline.probe.explain.backward import Watched
from frostline.probe.explain.verdicts import (
    CUT,
    FROZEN,
    FROZEN_BY_PLAN,
    GRADIENT_LOST,
    LEARNING_RATE_0,
    LEARNS,
    LEARNS_IN_PART,
    MOVES_WITHOUT_GRADIENT,
    NOT_FINITE,
    NOT_IN_OPTIMIZER,
    NOT_STEPPED,
    OVERWRITTEN,
    ROUNDS_AWAY,
    UNUSED,
    ZERO_GRADIENT,
    Evidence,
)
from frostline.probe.trace.source_line import SourceLine

_MOVED_ALL_THE_SAME = "decay, momentum or an older `.grad` moves it"


def reason_for(
    verdict: str, index: int, evidence: Evidence, watched: Watched, not_finite: str, model_tensor: ModelTensor
) -> tuple[str, SourceLine | None]:
    """Return why `verdict` applies to a tensor, and the line that is the reason, or None.

    Args:
        verdict: One of VERDICTS.
        index: Which of the tensors of the watched pass it is.
        evidence: What the pass and the step showed of it.
        watched: The pass.
        not_finite: What holds NaN or Inf, if something does.
        model_tensor: The tensor.
    """
    if verdict == CUT:
        return _why_cut(index, watched)
    if verdict == FROZEN and evidence.requires_grad:
        reason, where = _why_cut(index, watched)
        return f"no optimizer holds it, and its gradient is cut (a target network?): {reason}", where
    if verdict == UNUSED:
        return _why_unused(index, watched)
    if verdict == MOVES_WITHOUT_GRADIENT:
        lines = watched.vanished.get(index) if evidence.requires_grad and evidence.gradient == "zero" else None
        if lines and not evidence.frozen_part_moved:
            return f"exactly zero from {lines[0].call} on, but {_MOVED_ALL_THE_SAME}", lines[0]
        return _why_it_moves(evidence), None
    if verdict == LEARNS_IN_PART:
        return _how_much(index, watched, model_tensor), None
    if verdict == LEARNS and evidence.gradient == "zero":
        return "its gradient is zero now, but not after a step", None
    if verdict == NOT_FINITE and watched.spoilt and not_finite in ("its gradient", "the loss"):
        return f"the loss holds NaN or Inf from {called(watched.spoilt)}", watched.spoilt[0]
    if lines := watched.vanished.get(index):
        if verdict == NOT_FINITE and not_finite == "its gradient":
            return f"its gradient holds NaN or Inf from {called(lines)}", lines[0]
        if verdict == ZERO_GRADIENT:
            return f"its gradient is exactly zero from {called(lines)}", lines[0]
    dtype = str(model_tensor.tensor.dtype).removeprefix("torch.")
    return {
        FROZEN_BY_PLAN: "train_only",
        FROZEN: "requires_grad is False",
        NOT_FINITE: f"{not_finite} holds NaN or Inf",
        NOT_IN_OPTIMIZER: "gets a gradient, but no parameter group holds it",
        LEARNING_RATE_0: "the learning rate of its group is 0",
        NOT_STEPPED: evidence.not_stepped,
        GRADIENT_LOST: evidence.gradient_lost,
        OVERWRITTEN: "the step moved it, and afterwards it was given its old values again",
        ZERO_GRADIENT: "its gradient is exactly zero everywhere",
        ROUNDS_AWAY: f"the step changes no bit: it is below {dtype}'s resolution",
    }.get(verdict, ""), None


def _how_much(index: int, watched: Watched, model_tensor: ModelTensor) -> str:
    indices, tensor = model_tensor.indices, model_tensor.tensor
    assert indices is not None
    learned, now = len(indices), watched.gradients[index].rows
    total = tensor.shape[0] if indices.kind == "rows" else tensor.numel()
    return f"{learned:,} of {total:,} {indices.kind}" + (f", {now:,} with a gradient now" if now < learned else "")


def _why_cut(index: int, watched: Watched) -> tuple[str, SourceLine | None]:
    lines = watched.cuts.get(index)
    if not lines:
        return "its value reaches the loss, but its gradient does not come back", None
    return called(lines), lines[0]


def called(lines: Sequence[SourceLine]) -> str:
    """Return the call of the first line, what stands there, and how many others there are."""
    first = lines[0]
    installed = f" (in {first.installed_line})" if first.installed_line else ""
    others = list({line.where: line for line in lines if line.where != first.where}.values())
    more = f", and {len(others) - 1} more" if len(others) > 1 else ""
    also = f" (also {others[0].call}, {others[0].where}{more})" if others else ""
    return f"{first.call}{also}: {first.source}".removesuffix(": ") + installed


def _why_unused(index: int, watched: Watched) -> tuple[str, SourceLine | None]:
    trace = watched.trace
    for escape in trace.escaped.escapes:
        line = escape.provenance.line
        if escape.provenance.value >> index & 1 and line is not None:
            return f"its value leaves torch by {line.call} and does not come back", line
    if trace.branched_on >> index & 1:
        return "only a Python `if` asks for its value", None
    if trace.outside_gradients >> index & 1:
        return "the gradient that torch.autograd.grad returned does not depend on it", None
    if trace.used >> index & 1:
        return "used, but its value does not reach the loss", None
    return "nothing in this forward uses it", None


def _why_it_moves(evidence: Evidence) -> str:
    if evidence.frozen_part_moved:
        return "the step moves its frozen part: an older `.grad` is still there"
    if evidence.without_effect:
        return f"its gradient is too small to change a bit of the step; {_MOVED_ALL_THE_SAME}"
    if not evidence.requires_grad:
        return "frozen, but an older `.grad` is still there, and the step uses it"
    if evidence.gradient == "zero":
        return f"its gradient is exactly zero; {_MOVED_ALL_THE_SAME}"
    return "gets no gradient; an older or zero-filled `.grad` lets the step move it"
