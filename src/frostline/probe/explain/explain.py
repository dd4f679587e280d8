"""Explain which parameters of a model move at the next step, which do not, and the line of code that says why.

The idea: run a real pass and a real step, look, and undo both. One watched forward and backward (backward.py) shows
which parameters get a gradient; the trace of the forward only says where one was lost. One step of the optimizers shows
what moves: "rounds away" and "moves without gradient" are seen, not computed. All of it runs inside `restored`
(restore/restored.py), so that nothing of it is left.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import PatternError
from frostline.partial.model_tensors import ModelTensor, find_tensors
from frostline.partial.sharded import is_sharded
from frostline.probe.explain.backward import WatchedPass
from frostline.probe.explain.explanation import Explanation
from frostline.probe.explain.faint import faint_gradients
from frostline.probe.explain.findings import finding, of_frozen_modules
from frostline.probe.explain.graph import graph_of
from frostline.probe.explain.optimizer_groups import OptimizerGroups
from frostline.probe.explain.path import path_to as find_path
from frostline.probe.explain.step import Step, add_stale, nonzero_after_step, take_one_step, without_effect
from frostline.probe.inputs import check_loss_fn, check_model, unwrapped
from frostline.probe.restore.reachable import optimizers_in_backward
from frostline.probe.restore.restored import restored
from frostline.probe.trial import written_buffers

_COMPILED = "The model is compiled; its eager module is explained."
_NO_GRAPH = "The loss requires no gradient: nothing can learn from it."


def explain(
    model: nn.Module, loss_fn: Callable[[], Tensor], optimizer: Any = None, *, path_to: str | None = None
) -> Explanation:
    """Explain for every parameter whether it moves at the next step, and if not, why not and where.

    One forward and backward and one step really run, and are undone: weights, `.grad`, buffers, RNG state, optimizer
    state and modes are as they were afterwards, bit for bit, also when something raises.

    Args:
        model: Any module. Of a compiled model, or one in DistributedDataParallel, the module inside is explained.
        loss_fn: Takes no arguments, runs the forward pass, returns the loss: one number.
        optimizer: What steps the model: an object with `param_groups` and `step`, or a list of them. None: what only
            an optimizer can tell (membership, learning rates, rounding) is not judged.
        path_to: The name of a parameter: the result then has its `path`, the calls on the shortest way from the loss
            back to it, with their lines in your code, and where its gradient ends if it does not arrive.

    Returns:
        An Explanation: print it; `.alarms` is empty if all is well; `.to_dict()` is for programs. Every parameter has
        one of these verdicts, the first that applies; the others are notes:

        - "frozen by plan", "frozen": by `train_only`; by `requires_grad=False`.
        - "not finite": its gradient, its values or the loss hold NaN or Inf, now or after the step.
        - "cut": its value reaches the loss, but its gradient does not come back; `where` is the line that cuts.
        - "unused": its value does not reach the loss.
        - "not in optimizer": it gets a gradient, but no parameter group holds it.
        - "moves without gradient": it gets none, zeros, or one so small that the step has the same bits with zeros, and
          decay, momentum or a stale `.grad` moves it.
        - "learning rate 0": the learning rate of its group is 0.
        - "zero gradient": exactly zero everywhere, and after a step too. Behind a factor that only starts at zero
          (LoRA) it is a note.
        - "rounds away": the step is below the resolution of its dtype, so no bit changes.
        - "learns in part": some rows or entries, as its plan says; "learns".

        A frozen tensor that moves all the same is "moves without gradient". Two notes compare a gradient with those of
        the other tensors: "noise" (a guess: it is as small as rounding errors) and "partly cut" (it is faint, and a
        line cuts another way from the tensor to the loss).

    Raises:
        PatternError: `path_to` is not the name of a parameter.
        ProbeError: The loss is not one number, or the pass cannot be run without changing something.
        TypeError: `model` is not a module, `loss_fn` not a function, or `optimizer` not an optimizer.

    Cost: one forward, backward and step (a second forward and backward if a gradient is zero), a note for each torch
        function that runs, and a copy of the parameters and of the optimizer's state meanwhile. The user's hooks run.
        What the pass does outside torch and its modules (a list appended to, a file read on) is not undone.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> x = torch.ones(3, 2)
        >>> explanation = fl.explain(model, lambda: model[1](model[0](x).detach()).sum())
        >>> explanation.alarms, explanation.to_dict()["0.weight"]["verdict"]
        (['0.weight', '0.bias'], 'cut')
    """
    check_model(model)
    check_loss_fn(loss_fn)
    groups = OptimizerGroups(optimizer)
    outer, model = model, unwrapped(model)
    remarks = [_COMPILED] if any("_orig_mod" in module._modules for module in outer.modules()) else []
    found = find_tensors(model)
    target = _index_of(path_to, found)
    leaves = [model_tensor.tensor if model_tensor.learned is None else model_tensor.learned for model_tensor in found]
    stale = {tensor: tensor.grad for tensor in (*leaves, *groups.tensors) if tensor.grad is not None}
    hooked = any(getattr(leaf, "_post_accumulate_grad_hooks", None) for leaf in leaves)
    stepped = [*groups.optimizers, *optimizers_in_backward(leaves)]
    with (
        restored([outer], function=loss_fn, optimizers=stepped, written=leaves, accumulation_hooks=True) as snapshot,
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        buffers = dict(model.named_buffers())
        partial = {index for index, model_tensor in enumerate(found) if model_tensor.indices is not None}
        watched = WatchedPass(leaves, loss_fn, partial, note_calls=target is not None, compiled=snapshot.compiled)
        path, graph, raised = None, [], ""
        if target is not None:
            path = find_path(path_to or "", target, watched.loss, watched.trace.calls)
            graph = graph_of(watched.loss, watched.trace.calls, [model_tensor.name for model_tensor in found])
        moving = written_buffers(model, buffers, snapshot)
        remarks += [] if watched.has_graph else [_NO_GRAPH]
        add_stale(stale)
        idle = without_effect(outer, groups, leaves, watched.gradients, stepped)
        try:
            remarks += take_one_step(groups, leaves, stale, loss_fn)
            step = Step(snapshot if groups.optimizers or hooked else None, idle)
        except Exception as error:  # whatever an optimizer raises is for the user to read
            raised = f"The step raised {type(error).__name__}: {' '.join(str(error).split())}"
            step = Step(None, {}, raised)
        # Of a sharded model each process sees its own shards only, and one more pass on some processes would hang.
        sharded = any(is_sharded(leaf) for leaf in leaves)
        zero = [index for index, status in enumerate(watched.gradients) if status.kind == "zero" and not sharded]
        # A hook may have stepped in the backward pass already, which the second pass would do once more.
        nonzero = nonzero_after_step(zero, leaves, loss_fn, step) if zero and not hooked else set()
        faint = faint_gradients(watched, {index: leaf.dtype for index, leaf in enumerate(leaves)})
        findings = [
            finding(index, model_tensor, leaves[index], watched, groups, step, index in nonzero, faint.get(index))
            for index, model_tensor in enumerate(found)
        ]
    remarks += groups.remarks(model, leaves, watched.other_leaves)
    return Explanation(findings, of_frozen_modules(model, moving), remarks, path, graph, raised)


def _index_of(name: str | None, found: Sequence[ModelTensor]) -> int | None:
    """Return the index of the tensor of this name; None for None."""
    if name is None:
        return None
    names = {each: index for index, model_tensor in enumerate(found) for each in model_tensor.names}
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or list(names)[:3]
        raise PatternError(f"path_to: the model has no parameter {name!r}. Pass one of its names, such as {near}.")
    return names[name]
