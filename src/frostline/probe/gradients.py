"""The value of a gradient, and nothing else: no trace of the pass that computed it.

The idea: run the loss once inside `kept` (keep.py), take the gradients with `torch.autograd.grad`, which writes to no
`.grad`, and let everything else be put back. Two cases need more:
    a module's output     a forward hook sends on a copy of it and notes where in the graph the copy was made
    reentrant checkpoint  `autograd.grad` cannot see into one; there `backward()` fills `.grad` that `kept` has emptied
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from frostline.errors import ProbeError
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor import PartialTensor, PartialView
from frostline.probe.autograd_graph import next_sequence_number, nodes_under
from frostline.probe.inputs import check_loss_fn
from frostline.probe.restore.restored import kept, stance

_calls = itertools.count(1)


def gradients(
    loss_fn: Callable[[], Tensor],
    wrt: Iterable[Tensor | nn.Module],
    *,
    model: nn.Module | None = None,
    generators: Iterable[Any] = (),
    masks: Literal["same", "fresh"] = "same",
) -> tuple[Tensor, ...]:
    """Return d loss / d each of `wrt`, and leave no trace of having looked.

    Afterwards these are as they were, bit for bit, also when `loss_fn` raises: every `.grad`, the random numbers still
    to come, buffers (BatchNorm statistics, counters), train and eval modes, hooks, flags, the graph of a step that is
    under way, DistributedDataParallel's reducer. So a run with any number of calls has the same losses as one without.

    Args:
        loss_fn: Takes nothing, runs the forward pass, returns the loss: one number, of any floating dtype.
        wrt: What to differentiate by. A tensor (a leaf that does not require a gradient, such as an input or a frozen
            Parameter, is made to for the length of the pass); a partial tensor: its learned part; a module: its output,
            which must be one tensor, made once in the pass, also where everything before it is frozen.
        model: A module that the pass changes and that `loss_fn` neither calls nor holds; needed rarely.
        generators: torch, numpy or Python generators that `loss_fn` draws from and that cannot be found from it.
        masks: "same": random numbers, dropout masks among them, are those that the next step will see. "fresh": new
            ones from torch's own generators at every call; generators of your own go on as with "same".

    Returns:
        One tensor for each of `wrt`, in order: detached, memory of its own, shape and dtype of what it belongs to; a
        partial tensor's has the shape of its learned part. A sparse gradient stays sparse.

    Raises:
        ProbeError: The loss is not one number or does not depend on one of `wrt`; a module of `wrt` is not called
            exactly once or returns no single tensor; the pass itself writes to a parameter; a module is still lazy.
        TypeError: `loss_fn` is no function; `wrt` holds something that has no gradient (integers, sharded parameters).

    Cost: one forward and backward, a copy of the buffers, some microseconds for each module and each torch function.
    Hooks of the user's run; accumulation hooks (`register_post_accumulate_grad_hook`) do not.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 1))
        >>> (gradient,) = fl.gradients(lambda: model(torch.ones(3, 2)).sum(), [model[0]])
        >>> gradient.shape, model[0].weight.grad
        (torch.Size([3, 2]), None)

    Source: the wish behind FreeLB's shared dropout masks and VAT's switched-off BatchNorm, without touching the model.
    """
    if masks not in ("same", "fresh"):
        raise ValueError(f"masks: {masks!r}, but it must be 'same' or 'fresh'.")
    check_loss_fn(loss_fn)
    if isinstance(wrt, (Tensor, nn.Module)) or not isinstance(wrt, Iterable):
        raise TypeError(f"wrt: {type(wrt).__name__}, but it must be a list of tensors and modules. Pass `[...]`.")
    targets = _targets(wrt := list(wrt))
    leaves = [target for target in targets if isinstance(target, Tensor) and target.is_leaf]
    outputs = {one: _Output(_name(index, one)) for index, one in enumerate(targets) if isinstance(one, nn.Module)}
    models = [*outputs] if model is None else [model, *outputs]
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept(models, function=loss_fn, tensors=leaves, generators=generators))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if outputs:
            stack.enter_context(stance("force_eager"))  # compiled code runs no hooks
        for module, output in outputs.items():
            stack.callback(module.register_forward_hook(output).remove)
        for leaf in leaves:
            leaf.requires_grad_()
        if masks == "fresh":
            _reseed()
        before = next_sequence_number()
        loss = _checked(loss_fn())
        nodes = list(nodes_under(loss.grad_fn))
        # A graph that was there before belongs to a step under way, which will need it.
        retain = any(node._sequence_nr() < before for node in nodes)
        found: Sequence[Tensor | None] = ()
        if any(node.name() == "CheckpointFunctionBackward" for node in nodes):
            found = _by_backward(loss, targets, outputs, nodes, retain)
        else:
            places: list[Any] = [outputs[one].only() if isinstance(one, nn.Module) else one for one in targets]
            if places:
                found = torch.autograd.grad(loss, places, allow_unused=True, retain_graph=retain)
        for index, gradient in enumerate(found):
            if gradient is None:
                raise ProbeError(f"{_name(index, wrt[index])}: the loss does not depend on it. Leave it out.")
        return tuple(gradient.detach().clone() for gradient in found if gradient is not None)


def _targets(wrt: Sequence[Tensor | nn.Module]) -> list[Tensor | nn.Module]:
    """What to differentiate by, the learned part for a partial tensor."""
    targets = [one.learned if isinstance(one, PartialTensor) else one for one in wrt]
    for index, one in enumerate(targets):
        name = _name(index, one)
        if isinstance(one, nn.Module):
            continue
        if not isinstance(one, Tensor):
            raise TypeError(f"{name}: it must be a tensor or a module.")
        if isinstance(one, PartialView):
            raise TypeError(f"{name}: a view of a partial tensor. Pass the partial tensor itself.")
        if not (one.is_floating_point() or one.is_complex()):
            raise TypeError(f"{name}: {one.dtype} has no gradient. For ids, pass the module that looks them up.")
        if is_sharded(one):
            raise TypeError(f"{name}: sharded by FSDP2. Pass a module: the gradient of its output is whole.")
        if one.is_inference():
            raise TypeError(f"{name}: made under inference_mode, so no graph can hold it. Pass `x.clone()`.")
    return targets


def _name(index: int, one: object) -> str:
    shape = f" of shape {tuple(one.shape)}" if isinstance(one, Tensor) else ""
    return f"wrt[{index}] ({type(one).__name__}{shape})"


class _Output:
    """The output of one module: a forward hook that sends on a copy of it, and where in the graph that was made.

    A copy, so that neither a later write in place nor a module that returns its own input moves the place.
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

    def only(self) -> GradientEdge:
        """Where the output was made, if that happened once."""
        if len(self._edges) == 1:
            return self._edges[0]
        if self._edges:
            raise ProbeError(f"{self._name}: called {len(self._edges)} times in the pass, so it has no one output.")
        raise ProbeError(f"{self._name}: not called in the pass. A direct call of its `forward` cannot be seen.")


def _by_backward(
    loss: Tensor, targets: Sequence[Any], outputs: dict[nn.Module, _Output], nodes: Iterable[Any], retain: bool
) -> list[Tensor | None]:
    """The gradients by `backward()`, which alone sees into a reentrant checkpoint; every `.grad` is kept."""
    for output in outputs.values():
        output.only()
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept(tensors=[node.variable for node in nodes if hasattr(node, "variable")]))
        inner: dict[int, list[Tensor]] = {}
        for one in targets:
            if isinstance(one, Tensor) and not one.is_leaf:
                stack.callback(one.register_hook(inner.setdefault(id(one), []).append).remove)
        loss.backward(retain_graph=retain)

        def gradient(one: Any) -> Tensor | None:
            if isinstance(one, Tensor) and one.is_leaf:
                return one.grad
            received = outputs[one].received if isinstance(one, nn.Module) else inner[id(one)]
            return received[0] if received else None

        return [gradient(one) for one in targets]


def _checked(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        hint = " Return its `.loss`." if hasattr(loss, "loss") else ""
        raise ProbeError(f"loss_fn: it returned {type(loss).__name__}, but the loss must be a tensor.{hint}")
    if loss.numel() != 1:
        raise ProbeError(
            f"loss_fn: the loss has shape {tuple(loss.shape)}, but it must be one number. Return its mean."
        )
    if not loss.is_floating_point():
        raise ProbeError(f"loss_fn: the loss is {loss.dtype}, which has no gradient.")
    if not loss.requires_grad:
        raise ProbeError(
            "loss_fn: the loss depends on nothing of `wrt`, or was cut from it: by `detach`, `item` or `no_grad`."
        )
    return loss


def _reseed() -> None:
    """Give torch's own generators a seed that no earlier call had, drawn from where they stand."""
    seed = (int(torch.randint(2**62, (), device="cpu")) + next(_calls)) % 2**62
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # `torch.manual_seed` would leave a seed behind for the day CUDA starts
        torch.cuda.manual_seed_all(seed)
