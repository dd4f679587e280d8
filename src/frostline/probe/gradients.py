"""The values of gradients, without side effects of the pass that computes them.

The idea: run the loss once inside `restored`, take the gradients with `torch.autograd.grad`, which writes to no
`.grad`, and let everything else be restored. Two cases need more:
    a module's output     a forward hook passes a copy of it on and notes where in the graph the copy was made
    reentrant checkpoint  opaque to `autograd.grad`; there `backward()` fills the `.grad` that `restored` has emptied
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from frostline.errors import ProbeError
from frostline.partial.optimizer_guard import is_stale
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor import PartialTensor, PartialView
from frostline.probe.autograd_graph import backward_nodes, next_sequence_number
from frostline.probe.inputs import check_loss, check_loss_fn
from frostline.probe.restore.restored import compile_stance, restored


def gradients(
    loss_fn: Callable[[], Tensor],
    wrt: Iterable[Tensor | nn.Module],
    *,
    model: nn.Module | None = None,
    generators: Iterable[Any] = (),
) -> tuple[Tensor, ...]:
    """Return the gradient of the loss with respect to each of `wrt`, without side effects.

    Afterwards these are as they were, bit for bit, also when `loss_fn` raises: every `.grad`, the state of random
    generators, buffers (BatchNorm statistics, counters), train and eval modes, hooks, `requires_grad`, the graph of a
    step in progress, DistributedDataParallel's reducer. A run with any number of calls has the losses of one without.

    The pass draws the random numbers that the next step will draw: the same dropout masks, the same negatives. For new
    ones, call `torch.seed()` and then this function in a `with torch.random.fork_rng():` block.

    Args:
        loss_fn: Takes no arguments, runs the forward pass, returns the loss: one number, of any floating dtype.
        wrt: What to differentiate with respect to. A tensor (a leaf that does not require a gradient, such as an input
            or a frozen Parameter, does so during the pass); a partial tensor: its learned part; a module: its output,
            which must be one tensor, computed once in the pass. Nothing before the module needs to learn.
        model: A module that the pass changes and that `loss_fn` neither calls nor references; needed rarely.
        generators: torch, numpy or Python generators that `loss_fn` draws from and that cannot be found from it.

    Returns:
        One tensor for each of `wrt`, in order: detached, with its own memory, shape and dtype of its target; a partial
        tensor's has the shape of its learned part. A sparse gradient stays sparse.

    Raises:
        ProbeError: The loss is not one number or does not depend on one of `wrt`; a module of `wrt` is not called
            exactly once or does not return a single tensor; the pass itself writes to a parameter; a module is lazy.
        TypeError: `loss_fn` is not a function; `wrt` holds something without a gradient (integers, sharded parameters).

    Cost: one forward and backward pass, a copy of the buffers, some microseconds for each module and torch function.
    The user's hooks run; accumulation hooks (`register_post_accumulate_grad_hook`) do not.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 1))
        >>> (gradient,) = fl.gradients(lambda: model(torch.ones(3, 2)).sum(), [model[0]])
        >>> gradient.shape, model[0].weight.grad
        (torch.Size([3, 2]), None)

    Source: FreeLB shares dropout masks between steps, VAT switches BatchNorm off; here both without touching the model.
    """
    check_loss_fn(loss_fn)
    if isinstance(wrt, (Tensor, nn.Module)) or not isinstance(wrt, Iterable):
        raise TypeError(f"wrt: expected a list of tensors and modules, got {type(wrt).__name__}. Pass `[...]`.")
    targets = _targets(wrt := list(wrt))
    leaves = [target for target in targets if isinstance(target, Tensor) and target.is_leaf]
    outputs = {
        target: _Output(_name(index, target)) for index, target in enumerate(targets) if isinstance(target, nn.Module)
    }
    models = [*outputs] if model is None else [model, *outputs]
    with contextlib.ExitStack() as stack:
        stack.enter_context(restored(models, function=loss_fn, tensors=leaves, generators=generators))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if outputs:
            stack.enter_context(compile_stance("force_eager"))  # compiled code skips hooks
        for module, output in outputs.items():
            stack.callback(module.register_forward_hook(output).remove)
        for leaf in leaves:
            leaf.requires_grad_()
        start = next_sequence_number()
        loss = _check_differentiable(loss_fn())
        nodes = list(backward_nodes(loss.grad_fn))
        # A node older than this pass belongs to a step in progress, whose own backward will need its graph.
        retain = any(node._sequence_nr() < start for node in nodes)
        found: Sequence[Tensor | None] = ()
        if any(node.name() == "CheckpointFunctionBackward" for node in nodes):
            found = _by_backward(loss, targets, outputs, nodes, retain)
        elif targets:
            # An edge into the graph, not a tensor, for a module: later writes in place change a tensor's own edge.
            inputs: list[Any] = [
                outputs[target].edge() if isinstance(target, nn.Module) else target for target in targets
            ]
            found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=retain)
        for index, gradient in enumerate(found):
            if gradient is None:
                raise ProbeError(f"{_name(index, wrt[index])}: {_why_none(targets[index])}")
        return tuple(gradient.detach().clone() for gradient in found if gradient is not None)


def _why_none(target: Tensor | nn.Module) -> str:
    if isinstance(target, Tensor) and is_stale(target):
        return "frozen by a plan, so it gets no gradient. Pass its module, for the gradient at its output."
    return "the loss does not depend on it. Leave it out."


def _targets(wrt: Sequence[Tensor | nn.Module]) -> list[Tensor | nn.Module]:
    """Return `wrt` with the learned part in place of each partial tensor; TypeError for what has no gradient."""
    targets = [target.learned if isinstance(target, PartialTensor) else target for target in wrt]
    for index, target in enumerate(targets):
        name = _name(index, target)
        if isinstance(target, nn.Module):
            continue
        if not isinstance(target, Tensor):
            raise TypeError(f"{name}: it must be a tensor or a module.")
        if isinstance(target, PartialView):
            raise TypeError(f"{name}: a view of a partial tensor. Pass the partial tensor itself.")
        if not (target.is_floating_point() or target.is_complex()):
            raise TypeError(f"{name}: {target.dtype} has no gradient. For ids, pass the module that looks them up.")
        if is_sharded(target):
            raise TypeError(f"{name}: sharded by FSDP2. Pass a module: the gradient of its output is whole.")
        if target.is_inference():
            raise TypeError(f"{name}: made under inference_mode, so no graph can hold it. Pass `x.clone()`.")
    return targets


def _name(index: int, target: object) -> str:
    shape = f" of shape {tuple(target.shape)}" if isinstance(target, Tensor) else ""
    return f"wrt[{index}] ({type(target).__name__}{shape})"


class _Output:
    """A forward hook of one module: passes a copy of the output on and notes where in the graph it was made.

    A copy, because its edge in the graph stays this module's own even if the next layer writes into the output in
    place, or if the module returns its input unchanged.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._edges: list[GradientEdge] = []
        self.received: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ProbeError(f"{self._name}: it returns {type(output).__name__}, not one tensor. Name a module inside.")
        if not (output.is_floating_point() or output.is_complex()):
            raise ProbeError(f"{self._name}: it returns {output.dtype}, which has no gradient.")
        with torch.enable_grad():
            copy = (output if output.requires_grad else output.detach().requires_grad_()).clone()
        copy.register_hook(self.received.append)
        self._edges.append(get_gradient_edge(copy))
        return copy

    def edge(self) -> GradientEdge:
        """Return where in the graph the output was made; ProbeError unless the module was called exactly once."""
        if len(self._edges) == 1:
            return self._edges[0]
        if self._edges:
            raise ProbeError(f"{self._name}: called {len(self._edges)} times in the pass, so it has no single output.")
        raise ProbeError(f"{self._name}: not called in the pass. A direct call of its `forward` cannot be seen.")


def _by_backward(
    loss: Tensor, targets: Sequence[Any], outputs: dict[nn.Module, _Output], nodes: Iterable[Any], retain: bool
) -> list[Tensor | None]:
    """Return the gradients that `backward()` computes; every `.grad` is restored.

    A reentrant checkpoint runs its inner graph only in `backward()`; `autograd.grad` raises where it meets one.
    """
    for output in outputs.values():
        output.edge()  # raises unless there is exactly one
    with contextlib.ExitStack() as stack:
        # `restored` around the pass has emptied the `.grad` of leaves that it could find; the graph shows the others.
        stack.enter_context(restored(tensors=[node.variable for node in nodes if hasattr(node, "variable")]))
        inner: dict[int, list[Tensor]] = {}
        for target in targets:
            if isinstance(target, Tensor) and not target.is_leaf:
                stack.callback(target.register_hook(inner.setdefault(id(target), []).append).remove)
        loss.backward(retain_graph=retain)

        def gradient(target: Any) -> Tensor | None:
            if isinstance(target, Tensor) and target.is_leaf:
                return target.grad
            received = outputs[target].received if isinstance(target, nn.Module) else inner[id(target)]
            return received[0] if received else None

        return [gradient(target) for target in targets]


def _check_differentiable(returned: Any) -> Tensor:
    loss = check_loss(returned)
    if not loss.is_floating_point():
        raise ProbeError(f"loss_fn: the loss is {loss.dtype}, which has no gradient.")
    if not loss.requires_grad:
        raise ProbeError(
            "loss_fn: the loss does not depend on `wrt`, or was cut off from it by `detach`, `item` or `no_grad`."
        )
    return loss
