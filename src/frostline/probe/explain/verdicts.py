"""What can be said of a parameter, in words that do not change, and the order in which they count.

Of all words that hold for a parameter the first is its verdict; the others are notes. One case is out of order: a
frozen tensor that a stale `.grad` moves all the same "moves without gradient".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BY_PLAN, FROZEN, NOT_FINITE, CUT, UNUSED = "frozen by plan", "frozen", "not finite", "cut", "unused"
NOT_HELD, MOVES_ANYWAY, RATE_0 = "not in optimizer", "moves without gradient", "learning rate 0"
ZERO, ROUNDS_AWAY, IN_PART, LEARNS = "zero gradient", "rounds away", "learns in part", "learns"
VERDICTS = (
    *(BY_PLAN, FROZEN, NOT_FINITE, CUT, UNUSED, NOT_HELD, MOVES_ANYWAY),
    *(RATE_0, ZERO, ROUNDS_AWAY, IN_PART, LEARNS),
)
ALARMS = frozenset(VERDICTS) - {BY_PLAN, FROZEN, IN_PART, LEARNS}
TIED, TWICE = "tied", "listed twice"


@dataclass(frozen=True)
class Seen:
    """What one pass and one step showed of a parameter.

    Attributes:
        requires_grad: Whether it asks for a gradient.
        by_plan: Whether `train_only` decided about it.
        gradient: What the backward pass brought: nothing at all, exact zeros, or numbers.
        awake: Whether a gradient of zeros is no longer one after a step.
        finite: Whether its gradient, its values and the loss hold neither NaN nor Inf.
        reaches: Whether its value reaches the loss.
        held: How many times optimizers list it; None where there is no optimizer to ask.
        rates: The learning rates of the groups that hold it.
        moved: Whether a step changes any bit of it; None where no step could be taken.
        in_part: Whether it is the learned part of a tensor of which the rest is frozen.
        frozen_part_moved: Whether a step changes any bit of that rest.
    """

    requires_grad: bool
    by_plan: bool
    gradient: Literal["none", "zero", "numbers"]
    awake: bool
    finite: bool
    reaches: bool
    held: int | None
    rates: Sequence[float]
    moved: bool | None
    in_part: bool
    frozen_part_moved: bool


def words_for(seen: Seen) -> list[str]:
    """Every word that holds, the verdict first."""
    if not seen.requires_grad:
        frozen = BY_PLAN if seen.by_plan else FROZEN
        return [MOVES_ANYWAY, frozen] if seen.moved else [frozen]
    nothing, zero, numbers = (seen.gradient == kind for kind in ("none", "zero", "numbers"))
    rate_0 = bool(seen.rates) and not any(seen.rates)
    holds = {
        NOT_FINITE: not seen.finite,
        CUT: nothing and seen.reaches,
        UNUSED: nothing and not seen.reaches,
        NOT_HELD: seen.held == 0 and not seen.moved,
        MOVES_ANYWAY: (nothing or (zero and not seen.awake)) and bool(seen.moved),
        RATE_0: rate_0,
        ZERO: zero and not seen.awake,
        ROUNDS_AWAY: numbers and seen.finite and bool(seen.held) and not rate_0 and seen.moved is False,
    }
    learns = [IN_PART if seen.in_part else LEARNS, *([ZERO] if zero else [])]
    words = [word for word in VERDICTS if holds.get(word)] or learns
    return [MOVES_ANYWAY, *words] if seen.frozen_part_moved else words
