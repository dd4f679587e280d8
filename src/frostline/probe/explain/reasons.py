"""Why a verdict holds, in one line, and the line of the user's code that is the reason."""

from __future__ import annotations

from frostline.partial.model_tensors import Found
from frostline.probe.explain.backward import Observed
from frostline.probe.explain.verdicts import (
    BY_PLAN,
    CUT,
    FROZEN,
    IN_PART,
    LEARNS,
    MOVES_ANYWAY,
    NOT_FINITE,
    NOT_HELD,
    RATE_0,
    ROUNDS_AWAY,
    UNUSED,
    ZERO,
    Seen,
)


def reason_for(
    word: str, place: int, seen: Seen, observed: Observed, not_finite: str, one: Found
) -> tuple[str, str | None]:
    """The reason why `word` holds for the tensor `one` in this place, and `file:line` or None."""
    tensor = one.tensor if one.learned is None else one.learned
    if word == CUT:
        return _why_cut(place, observed)
    if word == UNUSED:
        return _why_unused(place, observed)
    if word == MOVES_ANYWAY:
        return _why_it_moves(seen), None
    if word == IN_PART:
        return _how_much(place, observed, one), None
    if word == LEARNS and seen.gradient == "zero":
        return "its gradient is zero now, and no longer after a step", None
    return {
        BY_PLAN: "train_only",
        FROZEN: "requires_grad is False",
        NOT_FINITE: f"{not_finite} holds NaN or Inf",
        NOT_HELD: "gets a gradient, and no parameter group holds it",
        RATE_0: "the learning rate of its group is 0",
        ZERO: "its gradient is exactly zero everywhere",
        ROUNDS_AWAY: f"the step changes no bit: it is below {str(tensor.dtype).partition('.')[2]}'s resolution",
    }.get(word, ""), None


def _how_much(place: int, observed: Observed, one: Found) -> str:
    assert one.layout is not None
    learned, now = len(one.layout), observed.brought[place].rows
    whole = one.tensor.shape[0] if one.layout.kind == "rows" else one.tensor.numel()
    return f"{learned:,} of {whole:,} {one.layout.kind}" + (f", {now:,} with a gradient now" if now < learned else "")


def _why_cut(place: int, observed: Observed) -> tuple[str, str | None]:
    sites = observed.cuts.get(place)
    if not sites:
        return "its value reaches the loss, its gradient does not come back", None
    first = sites[0]
    inside = f" (in {first.inside})" if first.inside else ""
    others = list({site.where: site for site in sites if site.where != first.where}.values())
    more = f", and {len(others) - 1} more" if len(others) > 1 else ""
    also = f" (also {others[0].call}, {others[0].where}{more})" if others else ""
    return f"{first.call}{also}: {first.source}".removesuffix(": ") + inside, first.where


def _why_unused(place: int, observed: Observed) -> tuple[str, str | None]:
    trace = observed.trace
    for left in trace.numbers.left:
        site = left.entry.site
        if left.entry.value >> place & 1 and site is not None:
            return f"its value leaves torch by {site.call} and does not come back", site.where
    if trace.asked >> place & 1:
        return "only a Python `if` asks for its value", None
    if trace.used >> place & 1:
        return "used, but its value does not reach the loss", None
    return "nothing in this forward uses it", None


def _why_it_moves(seen: Seen) -> str:
    if seen.frozen_part_moved:
        return "the step moves its frozen part: an older `.grad` is still there"
    if not seen.requires_grad:
        return "frozen, but an older `.grad` is still there, and the step uses it"
    if seen.gradient == "zero":
        return "its gradient is exactly zero; decay, momentum or an older `.grad` moves it"
    return "gets no gradient; an older or zero-filled `.grad` lets the step move it"
