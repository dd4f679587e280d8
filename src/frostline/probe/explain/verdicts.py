"""The verdicts on a parameter, in fixed wording, and which of them applies.

The first verdict that applies wins; the rest become notes. One exception: a frozen tensor, or the frozen part of one,
that a stale `.grad` moves is "moves without gradient".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

FROZEN_BY_PLAN, FROZEN, NOT_FINITE, CUT, UNUSED = "frozen by plan", "frozen", "not finite", "cut", "unused"
NOT_IN_OPTIMIZER, MOVES_WITHOUT_GRADIENT = "not in optimizer", "moves without gradient"
LEARNING_RATE_0, ZERO_GRADIENT, ROUNDS_AWAY = "learning rate 0", "zero gradient", "rounds away"
LEARNS_IN_PART, LEARNS = "learns in part", "learns"
NOT_STEPPED, GRADIENT_LOST, OVERWRITTEN = "not stepped", "gradient lost", "overwritten"  # of a watched run
VERDICTS = (
    *(FROZEN_BY_PLAN, FROZEN, NOT_FINITE, CUT, UNUSED, NOT_IN_OPTIMIZER, NOT_STEPPED, GRADIENT_LOST),
    *(MOVES_WITHOUT_GRADIENT, LEARNING_RATE_0, ZERO_GRADIENT, ROUNDS_AWAY, OVERWRITTEN, LEARNS_IN_PART, LEARNS),
)
ALARMS = frozenset(VERDICTS) - {FROZEN_BY_PLAN, FROZEN, LEARNS_IN_PART, LEARNS}
# Only ever notes:
TIED, LISTED_TWICE, NOISE, PARTLY_CUT = "tied", "listed twice", "noise", "partly cut"
STEP_SKIPPED, STEP_RAISED = "step skipped", "step raised"
NOTES = (TIED, LISTED_TWICE, NOISE, PARTLY_CUT, STEP_SKIPPED, STEP_RAISED)


@dataclass(frozen=True)
class Evidence:
    """What one pass and one step showed of a parameter.

    Attributes:
        requires_grad: Whether it requires a gradient.
        by_plan: Whether `train_only` decided about it.
        gradient: What the backward pass gave it: no gradient, exact zeros, or anything else.
        nonzero_after_step: Whether a gradient of exact zeros is nonzero after a step.
        finite: Whether its gradient, its values and the loss hold neither NaN nor Inf.
        reaches_loss: Whether its value reaches the loss.
        listings: How many times optimizers list it; None without an optimizer.
        learning_rates: Those of the groups that hold it.
        moved: Whether a step changes any bit of it; None if no step could be taken.
        in_part: Whether it is the learned part of a tensor, the rest of which is frozen.
        frozen_part_moved: Whether a step changes any bit of that rest.
        without_effect: Whether the step has the same bits as one with a gradient of zeros.
        not_stepped: Why no step used the gradients of a watched run; empty if one did.
        gradient_lost: What became of its gradient between backward and step; empty if it was still there.
        overwritten: Whether the step moved it, and it has its old bits again.
    """

    requires_grad: bool
    by_plan: bool
    gradient: Literal["none", "zero", "nonzero"]
    nonzero_after_step: bool
    finite: bool
    reaches_loss: bool
    listings: int | None
    learning_rates: Sequence[float]
    moved: bool | None
    in_part: bool
    frozen_part_moved: bool
    without_effect: bool = False
    not_stepped: str = ""
    gradient_lost: str = ""
    overwritten: bool = False


def verdicts_for(evidence: Evidence) -> list[str]:
    """Return every verdict that applies; the first is the one that counts."""
    if not evidence.requires_grad:
        frozen = FROZEN_BY_PLAN if evidence.by_plan else FROZEN
        return [MOVES_WITHOUT_GRADIENT, frozen] if evidence.moved else [frozen]
    none, zero, nonzero = (evidence.gradient == kind for kind in ("none", "zero", "nonzero"))
    if none and evidence.reaches_loss and evidence.listings == 0 and not evidence.moved and evidence.finite:
        return [FROZEN, CUT, NOT_IN_OPTIMIZER]  # a target network, a teacher: nobody means to train it
    dead = zero and not evidence.nonzero_after_step
    rate_0 = bool(evidence.learning_rates) and not any(evidence.learning_rates)
    applies = {
        NOT_FINITE: not evidence.finite,
        CUT: none and evidence.reaches_loss,
        UNUSED: none and not evidence.reaches_loss,
        NOT_IN_OPTIMIZER: evidence.listings == 0 and not evidence.moved,  # a hook may step what no group holds
        MOVES_WITHOUT_GRADIENT: (none or dead or evidence.without_effect) and bool(evidence.moved),
        LEARNING_RATE_0: rate_0,
        ZERO_GRADIENT: dead,
        ROUNDS_AWAY: (
            nonzero
            and evidence.finite
            and bool(evidence.listings)
            and not (rate_0 or evidence.not_stepped or evidence.gradient_lost or evidence.overwritten)
            and evidence.moved is False
        ),
        NOT_STEPPED: nonzero and bool(evidence.not_stepped) and bool(evidence.listings),
        GRADIENT_LOST: bool(evidence.gradient_lost) and bool(evidence.listings) and not evidence.not_stepped,
        OVERWRITTEN: evidence.overwritten,
    }
    learns = [LEARNS_IN_PART if evidence.in_part else LEARNS, *([ZERO_GRADIENT] if zero else [])]
    verdicts = [verdict for verdict in VERDICTS if applies.get(verdict)] or learns
    return [MOVES_WITHOUT_GRADIENT, *verdicts] if evidence.frozen_part_moved else verdicts


@dataclass(frozen=True)
class Finding:
    """What applies to one parameter of a model.

    Attributes:
        name: Its first name in the model.
        tied: Its other names: the same tensor.
        shape: Its shape; for a partial tensor the whole tensor's.
        verdicts: Every verdict that applies, the one that counts first.
        reason: Why, in one line.
        where: The line of code that is the reason, as `file:line`; None if no line is.
        groups: Of a partial tensor: verdict -> how many of its rows, or entries, it applies to; None for others.
        listed_twice: Whether optimizers list it more than once.
        hints: Notes that are no verdicts: "noise" and "partly cut", guesses from the size of its gradient; "step
            skipped", "step raised".
        fix: What to type; empty unless it is an alarm.
    """

    name: str
    tied: tuple[str, ...]
    shape: tuple[int, ...]
    verdicts: tuple[str, ...]
    reason: str
    where: str | None = None
    groups: Mapping[str, int] | None = None
    listed_twice: bool = False
    hints: tuple[str, ...] = ()
    fix: str = ""

    @property
    def verdict(self) -> str:
        """The verdict that counts."""
        return self.verdicts[0]

    @property
    def notes(self) -> list[str]:
        """The other verdicts that apply, `hints`, "listed twice", and "tied" for a tensor of several names."""
        return [
            *self.verdicts[1:],
            *self.hints,
            *([LISTED_TWICE] if self.listed_twice else []),
            *([TIED] if self.tied else []),
        ]

    @property
    def is_alarm(self) -> bool:
        """Whether it does not train as it stands."""
        return self.verdict in ALARMS
