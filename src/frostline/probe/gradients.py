"""The values of gradients, without side effects of the pass that computes them.

The idea: run the loss once inside `restored`, take the gradients with `torch.autograd.grad`, which writes to no
`.grad`, and let everything else be restored. Two cases need more:
    a tensor inside the pass   an observer (outputs.py) passes a copy of it on and notes where in the graph it was made
    reentrant checkpoint       opaque to `autograd.grad`; there `backward()` fills the `.grad` that `restored` emptied
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from frostline.errors import ProbeError
from frostline.partial.optimizer_guard import is_stale
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor import PartialTensor, PartialView
from frostline.probe.autograd_graph import backward_nodes, next_sequence_number
from frostline.probe.inputs import check_loss, check_loss_fn, own_backward
from frostline.probe.outputs import Output, observing, place
from frostline.probe.restore.restored import compile_stance, restored


def gradients(
    loss_fn: Callable[[], Tensor],
    wrt: Iterable[Tensor | Output],
    *,
    model: nn.Module | None = None,
    generators: Iterable[Any] = (),
) -> tuple[Any, ...]:
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
            which must be one tensor; a name: the tensor that the forward passes to `fl.mark(x, name)`. `(module, 0)`
            and `(name, 0)` are the first call alone, counted from 0. Nothing before them needs to learn.
        model: A module that the pass changes and that `loss_fn` neither calls nor references; needed rarely.
        generators: torch, numpy or Python generators that `loss_fn` draws from and that cannot be found from it.

    Returns:
        One tensor for each of `wrt`, in order: detached, with its own memory, shape and dtype of its target; a partial
        tensor's has the shape of its learned part. A sparse gradient stays sparse. For a module that is called several
        times (a name that is marked several times), a tuple of them, one for each call.

    Raises:
        ProbeError: The loss is not one number or does not depend on one of `wrt`; a module of `wrt` is not called, or
            not so often, or does not return a single tensor; the pass itself writes to a parameter; a module is lazy.
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
    if isinstance(wrt, Tensor | nn.Module | str) or not isinstance(wrt, Iterable):
        raise TypeError(f"wrt: expected a list of tensors and modules, got {type(wrt).__name__}. Pass `[...]`.")
    observed: dict[nn.Module | str, _Calls] = {}
    targets = [_target(index, given, observed) for index, given in enumerate(wrt)]
    leaves = [target for target, _ in targets if isinstance(target, Tensor) and target.is_leaf]
    models = [where for where in (model, *observed) if isinstance(where, nn.Module)]
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(restored(models, function=loss_fn, tensors=leaves, generators=generators))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if observed and before.compiled:
            stack.enter_context(compile_stance("force_eager"))  # compiled code skips hooks
        for where, calls in observed.items():
            stack.enter_context(observing(where, calls))
        for leaf in leaves:
            leaf.requires_grad_()
        start = next_sequence_number()
        loss = _check_differentiable(loss_fn())
        nodes = list(backward_nodes(loss.grad_fn))
        # A node older than this pass belongs to a step in progress, whose own backward will need its graph.
        retain = any(node._sequence_nr() < start for node in nodes)
        # An edge into the graph, not a tensor, for an output: later writes in place change a tensor's own edge.
        inputs = [[target] if isinstance(target, Tensor) else target.edges(call) for target, call in targets]
        with own_backward():
            if any(node.name() == "CheckpointFunctionBackward" for node in nodes):
                found = _by_backward(loss, targets, nodes, retain)
            else:
                flat = iter(
                    torch.autograd.grad(loss, list(chain.from_iterable(inputs)), allow_unused=True, retain_graph=retain)
                    if inputs
                    else ()
                )
                found = [[next(flat) for _ in group] for group in inputs]
        for index, (group, (target, call)) in enumerate(zip(found, targets, strict=True)):
            for number, gradient in enumerate(group):
                if gradient is None:
                    name = _name(index, target) if isinstance(target, Tensor) else target.name
                    which = f", call {number}" if len(group) > 1 else "" if call is None else f", call {call}"
                    raise ProbeError(f"{name}{which}: {_why_none(target)}")
        copies = [tuple(gradient.detach().clone() for gradient in group if gradient is not None) for group in found]
        return tuple(group if len(group) > 1 else group[0] for group in copies)


class _Calls:
    """Observes the calls of one module, or the tensors of one mark: notes where in the graph each output was made.

    It passes a copy on, because the copy's edge in the graph stays this output's own even if the next layer writes into
    it in place, or if the module returns its input unchanged.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._edges: list[Any] = []
        self._received: list[list[Tensor]] = []  # for each call
        self._repeated: list[Tensor] = []  # by a reentrant checkpoint, for which of several calls is not known

    def __call__(self, call: int | None, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ProbeError(f"{self.name}: it returns {type(output).__name__}, not one tensor. Name a module inside.")
        if not (output.is_floating_point() or output.is_complex()):
            raise ProbeError(f"{self.name}: it returns {output.dtype}, which has no gradient.")
        with torch.enable_grad():
            copy = (output if output.requires_grad else output.detach().requires_grad_()).clone()
        if call == len(self._edges):
            self._edges.append(get_gradient_edge(copy))
            self._received.append([])
        copy.register_hook((self._repeated if call is None else self._received[call]).append)
        return copy

    def edges(self, call: int | None) -> list[Any]:
        """Return where in the graph the outputs were made, or the one of `call`; ProbeError if there was none."""
        if not self._edges:
            raise ProbeError(f"{self.name}: not called in the pass. A direct call of its `forward` cannot be seen.")
        if call is None:
            return self._edges
        if call >= len(self._edges):
            raise ProbeError(f"{self.name}, call {call}: called {len(self._edges)} times in the pass, counted from 0.")
        return [self._edges[call]]

    def received(self, call: int | None) -> list[Tensor | None]:
        """Return the gradients that reached the outputs in a `backward()`."""
        if self._repeated:
            raise ProbeError(
                f"{self.name}: called {len(self._edges)} times, in a reentrant checkpoint, which hides them from each "
                "other. Pass use_reentrant=False to checkpoint."
            )
        received = [gradients[0] if gradients else None for gradients in self._received]
        return received if call is None else [received[call]]


_Target = tuple[Tensor | _Calls, int | None]


def _target(index: int, given: Any, observed: dict[nn.Module | str, _Calls]) -> _Target:
    """Return what to differentiate with respect to: a tensor, or the calls of something that is then in `observed`.

    Raises:
        TypeError: It has no gradient.
    """
    target = given.learned if isinstance(given, PartialTensor) else given
    name = _name(index, target)
    if not isinstance(target, Tensor):
        try:
            where, call = place(target)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        name = _name(index, where)
        return observed.setdefault(where, _Calls(name)), call
    if isinstance(target, PartialView):
        raise TypeError(f"{name}: a view of a partial tensor. Pass the partial tensor itself.")
    if not (target.is_floating_point() or target.is_complex()):
        raise TypeError(f"{name}: {target.dtype} has no gradient. For ids, pass the module that looks them up.")
    if is_sharded(target):
        raise TypeError(
            f"{name}: sharded over processes. Pass a module: the gradient of its output is whole; or, under tensor "
            "parallelism, weight.learned."
        )
    if target.is_inference():
        raise TypeError(f"{name}: made under inference_mode, so no graph can hold it. Pass `x.clone()`.")
    return target, None


def _name(index: int, target: object) -> str:
    shape = f" of shape {tuple(target.shape)}" if isinstance(target, Tensor) else ""
    return f"wrt[{index}] ({repr(target) if isinstance(target, str) else type(target).__name__}{shape})"


def _why_none(target: Tensor | _Calls) -> str:
    if isinstance(target, Tensor) and is_stale(target):
        return "frozen by a plan, so it gets no gradient. Pass its module, for the gradient at its output."
    return "the loss does not depend on it. Leave it out."


def _by_backward(loss: Tensor, targets: list[_Target], nodes: Iterable[Any], retain: bool) -> list[list[Tensor | None]]:
    """Return the gradients that `backward()` computes; every `.grad` is restored.

    A reentrant checkpoint runs its inner graph only in `backward()`; `autograd.grad` raises where it meets one.
    """
    with contextlib.ExitStack() as stack:
        # `restored` around the pass has emptied the `.grad` of leaves that it could find; the graph shows the others.
        stack.enter_context(restored(tensors=[node.variable for node in nodes if hasattr(node, "variable")]))
        inner: dict[int, list[Tensor]] = {}
        for target, _ in targets:
            if isinstance(target, Tensor) and not target.is_leaf:
                stack.callback(target.register_hook(inner.setdefault(id(target), []).append).remove)
        loss.backward(retain_graph=retain)

        def gradients(target: Tensor | _Calls, call: int | None) -> list[Tensor | None]:
            if not isinstance(target, Tensor):
                return target.received(call)
            if target.is_leaf:
                return [target.grad]
            return [received[0] if (received := inner[id(target)]) else None]

        return [gradients(target, call) for target, call in targets]


def _check_differentiable(returned: Any) -> Tensor:
    loss = check_loss(returned)
    if not loss.is_floating_point():
        raise ProbeError(f"loss_fn: the loss is {loss.dtype}, which has no gradient.")
    if not loss.requires_grad:
        raise ProbeError(
            "loss_fn: the loss does not depend on `wrt`, or was cut off from it by `detach`, `item` or `no_grad`."
        )
    return loss
