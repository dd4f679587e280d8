"""What is found of each tensor: its evidence, the verdicts that follow, the reason."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from frostline.partial.model_tensors import ModelTensor, state_of
from frostline.probe.explain.backward import Watched
from frostline.probe.explain.faint import Faint
from frostline.probe.explain.fixes import fix_for
from frostline.probe.explain.optimizer_groups import OptimizerGroups
from frostline.probe.explain.reasons import reason_for
from frostline.probe.explain.step import Step
from frostline.probe.explain.vanishing import extent
from frostline.probe.explain.verdicts import (
    FROZEN_BY_PLAN,
    LEARNING_RATE_0,
    LEARNS,
    LEARNS_IN_PART,
    MOVES_WITHOUT_GRADIENT,
    OVERWRITTEN,
    ROUNDS_AWAY,
    STEP_RAISED,
    STEP_SKIPPED,
    ZERO_GRADIENT,
    Evidence,
    Finding,
    verdicts_for,
)
from frostline.probe.trace.source_line import SourceLine

_OF_HINT = {
    LEARNING_RATE_0: "its rate was 0 at this step, and no longer is",
    STEP_SKIPPED: "the scaler skipped this step",
    STEP_RAISED: "it got a gradient, but no step ended",
}


def finding(
    index: int,
    model_tensor: ModelTensor,
    leaf: Tensor,
    watched: Watched,
    groups: OptimizerGroups,
    step: Step,
    is_nonzero_after_step: bool,
    faint: Faint | None,
) -> Finding:
    """Return what applies to one tensor of a model, `leaf` the part of it that learns."""
    gradient = watched.gradients[index]
    moved = step.moved(leaf)
    spoilt_by_step = bool(moved) and not extent(leaf).finite
    not_finite = gradient.not_finite or ("it, after the step," if spoilt_by_step else "")
    in_part = model_tensor.learned is not None
    evidence = Evidence(
        # One that got a gradient was frozen after it, as where two optimizers take turns.
        requires_grad=(leaf.requires_grad or gradient.kind != "none") and leaf.numel() > 0,
        by_plan=_is_frozen_by_plan(model_tensor, leaf),
        gradient=gradient.kind,
        nonzero_after_step=is_nonzero_after_step,
        finite=not not_finite,
        reaches_loss=watched.reaches_loss(index),
        listings=groups.listings(leaf),
        learning_rates=step.learning_rates(leaf, groups),
        moved=moved,
        in_part=in_part and leaf.numel() < model_tensor.tensor.numel(),
        frozen_part_moved=in_part and bool(step.moved(model_tensor.tensor)),
        without_effect=step.is_without_effect(index, leaf),
        not_stepped=step.why_not_taken(index),
        gradient_lost=step.why_gradient_was_lost(index),
        overwritten=step.is_overwritten(index),
    )
    verdicts = verdicts_for(evidence)
    reason, line = reason_for(verdicts[0], index, evidence, watched, not_finite, model_tensor)
    where = None if line is None else line.where
    hints = step.hints(index, leaf)
    if verdicts[0] in (LEARNS, LEARNS_IN_PART):
        reason = "; ".join(filter(None, [reason, *(_OF_HINT[hint] for hint in hints)]))
    notes: tuple[str, ...] = ()
    if faint is not None and verdicts[0] in (LEARNS, LEARNS_IN_PART, ROUNDS_AWAY, MOVES_WITHOUT_GRADIENT):
        notes, reason, where = (faint.note,), f"{reason}; {faint.reason}".removeprefix("; "), where or faint.where
    if verdicts[0] == OVERWRITTEN:
        where = step.overwriting_line(index)
    return Finding(
        name=model_tensor.name,
        tied=tuple(model_tensor.names[1:]),
        shape=tuple(model_tensor.tensor.shape),
        verdicts=tuple(verdicts),
        listed_twice=(evidence.listings or 0) > 1,
        hints=(*notes, *hints),
        reason=reason,
        where=where,
        fix=fix_for(_to_mend(verdicts[0], evidence, line), None if line is None else line.call),
        groups=_groups(model_tensor, verdicts, evidence, gradient.rows),
    )


def _to_mend(verdict: str, evidence: Evidence, line: SourceLine | None) -> str:
    """Return the verdict whose fix helps: where decay moves what has no gradient, that is the fault."""
    if verdict == MOVES_WITHOUT_GRADIENT and not evidence.frozen_part_moved:
        if evidence.without_effect:
            return ROUNDS_AWAY
        if line is not None:
            return ZERO_GRADIENT
    return verdict


def _is_frozen_by_plan(model_tensor: ModelTensor, leaf: Tensor) -> bool:
    states = [(state, name) for module, name in model_tensor.owners if (state := state_of(module)) is not None]
    nothing_learns = model_tensor.learned is not None and not leaf.numel()
    return nothing_learns or any(name in (*state.frozen_by_plan, *state.mapped) for state, name in states)


def _groups(
    model_tensor: ModelTensor, verdicts: Sequence[str], evidence: Evidence, with_gradient: int
) -> dict[str, int] | None:
    """Return how many rows or entries of a partial tensor each verdict applies to; None for a whole tensor."""
    indices, tensor = model_tensor.indices, model_tensor.tensor
    if indices is None:
        return None
    learned = len(indices)
    frozen = (tensor.shape[0] if indices.kind == "rows" else tensor.numel()) - learned
    verdict = verdicts[1] if evidence.frozen_part_moved else verdicts[0]
    if verdict in (LEARNS, LEARNS_IN_PART):
        counts = {LEARNS: with_gradient, ZERO_GRADIENT: learned - with_gradient}
    else:
        counts = {verdict: learned}
    of_frozen = MOVES_WITHOUT_GRADIENT if evidence.frozen_part_moved else FROZEN_BY_PLAN
    counts[of_frozen] = counts.get(of_frozen, 0) + frozen
    return {verdict: count for verdict, count in counts.items() if count}


def of_frozen_modules(model: nn.Module, buffers: Sequence[str]) -> list[str]:
    """Return those of `buffers`, names in `model`, in whose module nothing learns.

    A module without parameters counts as part of its parent; so does one that the pass added and `restored` removes.
    """
    modules = dict(model.named_modules(remove_duplicate=False))

    def learns(module: str) -> bool:
        parameters = list(modules[module].parameters()) if module in modules else []
        if parameters or not module:
            return any(parameter.requires_grad for parameter in parameters)
        return learns(module.rpartition(".")[0])

    return [name for name in buffers if not learns(name.rpartition(".")[0])]
