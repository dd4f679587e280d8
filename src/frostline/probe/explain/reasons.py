"""Why a verdict applies, in one sentence, and the line of the user's code that causes it."""

from __future__ import annotations

from frostline.partial.model_tensors import ModelTensor
from frostline.probe.explain.backward import WatchedPass
from frostline.probe.explain.verdicts import (
    CUT,
    FROZEN,
    FROZEN_BY_PLAN,
    LEARNING_RATE_0,
    LEARNS,
    LEARNS_IN_PART,
    MOVES_WITHOUT_GRADIENT,
    NOT_FINITE,
    NOT_IN_OPTIMIZER,
    ROUNDS_AWAY,
    UNUSED,
    ZERO_GRADIENT,
    Evidence,
)


def reason_for(
    verdict: str, index: int, evidence: Evidence, watched: WatchedPass, not_finite: str, model_tensor: ModelTensor
) -> tuple[str, str | None]:
    """Return why `verdict` applies to a tensor, and the line as `file:line` or None.

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
    if verdict == UNUSED:
        return _why_unused(index, watched)
    if verdict == MOVES_WITHOUT_GRADIENT:
        return _why_it_moves(evidence), None
    if verdict == LEARNS_IN_PART:
        return _how_much(index, watched, model_tensor), None
    if verdict == LEARNS and evidence.gradient == "zero":
        return "its gradient is zero now, but not after a step", None
    dtype = str(model_tensor.tensor.dtype).removeprefix("torch.")
    return {
        FROZEN_BY_PLAN: "train_only",
        FROZEN: "requires_grad is False",
        NOT_FINITE: f"{not_finite} holds NaN or Inf",
        NOT_IN_OPTIMIZER: "gets a gradient, but no parameter group holds it",
        LEARNING_RATE_0: "the learning rate of its group is 0",
        ZERO_GRADIENT: "its gradient is exactly zero everywhere",
        ROUNDS_AWAY: f"the step changes no bit: it is below {dtype}'s resolution",
    }.get(verdict, ""), None


def _how_much(index: int, watched: WatchedPass, model_tensor: ModelTensor) -> str:
    indices, tensor = model_tensor.indices, model_tensor.tensor
    assert indices is not None
    learned, now = len(indices), watched.gradients[index].rows
    total = tensor.shape[0] if indices.kind == "rows" else tensor.numel()
    return f"{learned:,} of {total:,} {indices.kind}" + (f", {now:,} with a gradient now" if now < learned else "")


def _why_cut(index: int, watched: WatchedPass) -> tuple[str, str | None]:
    lines = watched.cuts.get(index)
    if not lines:
        return "its value reaches the loss, but its gradient does not come back", None
    first = lines[0]
    installed = f" (in {first.installed_line})" if first.installed_line else ""
    others = list({line.where: line for line in lines if line.where != first.where}.values())
    more = f", and {len(others) - 1} more" if len(others) > 1 else ""
    also = f" (also {others[0].call}, {others[0].where}{more})" if others else ""
    return f"{first.call}{also}: {first.source}".removesuffix(": ") + installed, first.where


def _why_unused(index: int, watched: WatchedPass) -> tuple[str, str | None]:
    trace = watched.trace
    for escape in trace.escaped.escapes:
        line = escape.provenance.line
        if escape.provenance.value >> index & 1 and line is not None:
            return f"its value leaves torch by {line.call} and does not come back", line.where
    if trace.branched_on >> index & 1:
        return "only a Python `if` asks for its value", None
    if trace.used >> index & 1:
        return "used, but its value does not reach the loss", None
    return "nothing in this forward uses it", None


def _why_it_moves(evidence: Evidence) -> str:
    if evidence.frozen_part_moved:
        return "the step moves its frozen part: an older `.grad` is still there"
    if not evidence.requires_grad:
        return "frozen, but an older `.grad` is still there, and the step uses it"
    if evidence.gradient == "zero":
        return "its gradient is exactly zero; decay, momentum or an older `.grad` moves it"
    return "gets no gradient; an older or zero-filled `.grad` lets the step move it"
