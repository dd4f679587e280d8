"""Follow which parameters reach a tensor, and where in the user's code their gradient is lost.

    with Trace(parameters) as trace:
        loss = loss_fn()
    trace.provenance(loss)  # masks of parameters: by value, by gradient
    trace.cuts(loss, mask)  # where the gradient of each parameter was lost on its way

The idea: a mode sees every call of a torch function before autograd does. For each tensor it notes the parameters whose
value reaches it and those that its gradient reaches. If the output of a call has lost some that its inputs had, the
user's line is noted *on that tensor*. Nothing is blamed while the pass runs: at the end the notes are followed back
from the loss, so a `h.detach().max()` that was only logged is never met. The trace does not decide which gradients
arrive: a real backward does. The trace only says why there is none, and where.

What a mode cannot see is found in other ways:
    numbers that leave torch       matched when they return as arguments (escaped_numbers.py)
    two tensors over one storage   writes are noted for the storage, so `b.data[:] = h` is seen through `b`
    Function.apply, Parameter(h)   patched while a trace runs (patches.py)
    threads that the pass starts   traced too (patches.py): torch's modes are of one thread
    no_grad                        torch tells a mode when it is switched on, so the `with` that did it is known
"""

from __future__ import annotations

import contextlib
import functools
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from frostline.partial.tensor import PartialTensor, PartialView
from frostline.probe.autograd_graph import backward_leaves
from frostline.probe.restore.torch_calls import (
    NO_VALUE,
    has_no_backward,
    inputs_of,
    name_of,
    targets_of,
    tensors_in,
)
from frostline.probe.trace.escaped_numbers import ESCAPES, EscapedNumbers
from frostline.probe.trace.grad_mode import GradMode
from frostline.probe.trace.node_lines import NodeLines
from frostline.probe.trace.none_returned import NoneReturned
from frostline.probe.trace.patches import patched_for
from frostline.probe.trace.provenance import NOTHING, Provenance, Storages
from frostline.probe.trace.source_line import SourceLine, current_line


class Trace(TorchFunctionMode):
    """While entered, note which of `parameters` reach each tensor.

    Args:
        parameters: Leaf tensors; those that do not require a gradient are followed by value alone.
        note_calls: Note the line of every call, not only of those that lose a gradient; it costs a walk of the stack.

    Attributes:
        used: Mask of the parameters that any call has used.
        branched_on: Mask of those whose truth a Python `if` has asked for.
        ended: Whether the block is over.
        outside_gradients: Mask of those that reach a tensor of which `torch.autograd.grad` took a gradient that does
            not depend on them.
        nodes: The line of each call that made a node of autograd's graph.
        grad_mode: Whether gradients flow now.
        escaped: The numbers that left torch.
        calls: With `note_calls`, the line of the call that made each provenance, in the order in which they ran.
    """

    may_detach = True  # whether what the pass computes may be changed, so that a pass that would raise can be explained

    def __init__(self, parameters: Sequence[Tensor], note_calls: bool = False) -> None:
        super().__init__()
        self.calls: dict[Provenance, SourceLine | None] = {}
        self._note_calls = note_calls
        self.used = self.branched_on = 0
        self.ended = False  # read by patches.py
        self.outside_gradients = 0
        self.nodes = NodeLines()
        self.escaped = EscapedNumbers()
        self._parameters = parameters  # held, so that no id is used twice
        self._bits = {id(parameter): 1 << index for index, parameter in enumerate(parameters)}
        # Weak references: the trace must not keep activations alive that the pass has let go. An id may then be used
        # again, so whoever looks one up compares the tensor too.
        self._known: dict[int, tuple[weakref.ref[Tensor], Provenance]] = {}
        self._storages = Storages()
        self._none_returned = NoneReturned()
        self.grad_mode = GradMode()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Trace:
        self._stack.enter_context(patched_for(self))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.ended = True
        self._stack.close()

    def provenance(self, value: Any) -> Provenance:
        """Return what is known of a tensor, or of a number that left torch."""
        if not isinstance(value, Tensor):
            return Provenance.merged(self.escaped.equal_to(value))
        if isinstance(value, PartialView) and id(value) not in self._known:
            value = value.origin
        if isinstance(value, PartialTensor):
            return Provenance.merged([self.provenance(value.learned), self.provenance(value.frozen)])
        known = self._known.get(id(value))
        provenance = known[1] if known is not None and known[0]() is value else self._first_seen(value)
        merged = self._storages.with_writes(value, provenance)
        if merged is not provenance:
            self._note(value, merged)  # so that the next look at it finds nothing new
        return merged

    def cuts(self, value: Any, mask: int) -> dict[int, list[SourceLine]]:
        """Find where the gradients of the parameters `mask` were lost, also in a backward that ran since.

        Returns:
            Index of the parameter -> lines in the order in which they ran, as `Provenance.cuts` does.
        """
        return self._none_returned.lines(mask) | self.provenance(value).cuts(mask)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, then note the provenance of its outputs."""
        if torch.compiler.is_compiling():  # inside of `torch.cond`, which is compiled wherever it runs
            return func(*args, **(kwargs or {}))
        return self.run_call(func, args, kwargs)

    def run_call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a torch function, then note the provenance of its outputs."""
        kwargs = kwargs or {}
        self.grad_mode.note(func, args)
        name = name_of(func)
        writes = self.writes_of(name, args, kwargs)
        result = func(*args, **kwargs)
        self.note_result(name, args, kwargs, result, writes)
        return result

    def writes_of(self, name: str, args: Any, kwargs: Any) -> list[tuple[Tensor, Provenance]]:
        """Return the tensors that a call is about to write to, with what is known of them.

        Asked before the call: afterwards a target holds, and requires, what was written.
        """
        return [(target, self.provenance(target)) for target in targets_of(name, args, kwargs)]

    def note_result(
        self, name: str, args: Any, kwargs: Any, result: Any, writes: Sequence[tuple[Tensor, Provenance]]
    ) -> None:
        """Note the provenance of what a call has returned, and of what it has written to."""
        if name not in NO_VALUE:
            for target, _ in writes:
                self.note_target(name, target)
            with torch._C.DisableTorchFunction():  # other modes need not see what is looked at here
                self._note_call(name, args, kwargs, result, writes)

    def _note_call(
        self, name: str, args: Any, kwargs: Any, result: Any, writes: Sequence[tuple[Tensor, Provenance]]
    ) -> None:
        outputs = tensors_in(result)
        if not outputs and not writes and name not in ESCAPES and name != "__bool__":
            return
        parents = [
            provenance for tensor in inputs_of(name, args, kwargs) if (provenance := self.provenance(tensor)).value
        ]
        if self.escaped.escapes:
            parents += self.escaped.returning_in_call(name, args, kwargs)
        if name == "grad" and any(output.requires_grad for output in outputs):  # torch.autograd.grad(create_graph)
            parents = [self._of_gradients(outputs, parents)]
        if not parents:
            return
        inputs = Provenance.merged(parents)
        self.used |= inputs.value
        if name == "__bool__":
            self.branched_on |= inputs.value
        elif name in ESCAPES:
            escaped = self._after_call(name, inputs, 0, parents)
            # Also where the gradient was lost before: a parameter that is unused is explained by where its value left.
            escaped.line = escaped.line or self.grad_mode.line(name)
            self.escaped.note(escaped, result)
        elif writes:
            self._note_writes(name, writes, inputs, parents)
        else:
            self._note_outputs(name, outputs, inputs, parents)

    def _note_outputs(
        self, name: str, outputs: Sequence[Tensor], inputs: Provenance, parents: Sequence[Provenance]
    ) -> None:
        hidden = self.grad_mode.is_hidden
        # At most two for a call, with and without a gradient: `max` returns values and indices.
        made: dict[bool, Provenance] = {}
        for output in outputs:
            if isinstance(output, PartialTensor):
                continue  # `weight.requires_grad_()`: what is known of it is known of its parts
            flows = self.grad_mode.may_flow(name) and (
                output.is_floating_point() or output.is_complex() if hidden else output.requires_grad
            )
            if flows not in made:
                made[flows] = self._after_call(name, inputs, inputs.gradient if flows else 0, parents)
            self._note(output, made[flows])
            self.nodes.note(name, output)

    def _note_writes(
        self,
        name: str,
        writes: Sequence[tuple[Tensor, Provenance]],
        inputs: Provenance,
        parents: Sequence[Provenance],
    ) -> None:
        for target, before in writes:
            if isinstance(target, PartialTensor | PartialView):
                target = (target if isinstance(target, PartialTensor) else target.origin).learned
            flows = self.grad_mode.may_flow(name) and (self.grad_mode.is_hidden or target.requires_grad)
            # A write may cover a few entries only, so what was there before still reaches the target.
            keeps = target.requires_grad and name != "detach_"
            gradient = (before.gradient if keeps else 0) | (inputs.gradient if flows else 0)
            after = self._after_call(name, inputs, gradient, (before, *parents))
            self._note(target, after)
            self.nodes.note(name, target)
            if inputs.value & ~before.value:
                # The target itself lost nothing, but another tensor over this storage may, since autograd does not know
                # that they share it. Then this is the line to blame.
                if after.line is None and inputs.gradient:
                    after.line = self.grad_mode.line(name)
                self._storages.note_write(target, after)

    def _after_call(self, name: str, inputs: Provenance, gradient: int, parents: Sequence[Provenance]) -> Provenance:
        """Return the provenance of what a call made of `inputs`, of which `gradient` came through."""
        lost = inputs.gradient & ~gradient
        made = Provenance(inputs.value, gradient, lost, self.grad_mode.line(name) if lost else None, tuple(parents))
        if self._note_calls:
            self.calls[made] = current_line(name, len(self.calls))
        return made

    def _first_seen(self, tensor: Tensor, call: str = "a tensor made outside torch functions") -> Provenance:
        """Return what is known of a tensor that no call has returned: a parameter, an input, or one made by `call`."""
        bit = self._bits.get(id(tensor), 0)
        if bit:
            provenance = Provenance(bit, bit if tensor.requires_grad else 0)
            self._note(tensor, provenance)
            return provenance
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return self.provenance(torch._C._functorch.get_unwrapped(tensor))
        # Values that came unseen lie in a storage that is known, or left torch as numbers. Gradients are never a guess:
        # autograd's own graph says which parameters they reach.
        below = self._storages.before_writes(tensor)
        parents = [below] if below.value else self.escaped.returning_in_tensor(tensor) if self.escaped.escapes else []
        reached = self._reached([tensor])
        origin = Provenance.merged([*parents, Provenance(reached, 0)])
        if not origin.value:
            return self._first_seen(tensor) if self.bit_of_new(tensor) else NOTHING
        provenance = self._after_call(call, origin, reached, parents)
        self._note(tensor, provenance)
        return provenance

    def _reached(self, tensors: Sequence[Tensor]) -> int:
        """Return the parameters that autograd's own graph of `tensors` reaches."""
        leaves = [leaf for tensor in tensors for leaf in backward_leaves(tensor.grad_fn)]
        bits = (self._bits.get(id(leaf), 0) or self.bit_of_new(leaf) for leaf in leaves)
        return functools.reduce(operator.or_, bits, 0)

    def bit_of_new(self, tensor: Tensor) -> int:
        """Return the bit of a parameter that is met for the first time; 0 where only the given ones are followed."""
        return 0

    def _of_gradients(self, gradients: Sequence[Tensor], parents: Sequence[Provenance]) -> Provenance:
        """Return the provenance of gradients that have a graph: it says on which parameters they depend.

        What the differentiated tensor depends on, they need not: a bias that is added at the end is in no gradient.
        """
        merged, reached = Provenance.merged(parents), self._reached(gradients)
        self.outside_gradients |= merged.gradient & ~reached
        gradient = merged.gradient & reached
        return Provenance((merged.value & ~merged.gradient) | reached, gradient, parents=tuple(parents))

    def _note(self, tensor: Tensor, provenance: Provenance) -> None:
        key = id(tensor)
        known = self._known

        def forget(gone: weakref.ref[Tensor]) -> None:
            if key in known and known[key][0] is gone:  # the id may be another tensor's by now
                del known[key]

        known[key] = weakref.ref(tensor, forget), provenance
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # torch.func unwraps it at the end, unseen
            self._note(torch._C._functorch.get_unwrapped(tensor), provenance)
        else:
            self._storages.note_tensor(tensor, provenance)

    def note_parameter(self, parameter: Tensor) -> None:
        """Note a Parameter that the line running now has made."""
        self._first_seen(parameter, "nn.Parameter")

    def run_backward(self, tensors: Any, run: Callable[[], Any]) -> Any:
        """Run a backward pass of the user's."""
        return run()

    def note_scaler_step(self) -> None:
        """Note that a GradScaler was asked to step."""

    def note_target(self, name: str, target: Tensor) -> None:
        """Note that the torch function `name` has written to `target`."""

    def run_function(self, function: Any, args: Any, run: Callable[[], Any]) -> Any:
        """Run a custom autograd.Function, and note the provenance of its outputs."""
        inputs = [self.provenance(argument) for argument in args if isinstance(argument, Tensor)]
        checkpoint = function.__name__ == "CheckpointFunction"  # torch's; other libraries have theirs under this name
        self.grad_mode.checkpoints += checkpoint
        try:
            result = run()
        finally:
            self.grad_mode.checkpoints -= checkpoint
        call = {"CompiledFunction": "compiled code"}.get(function.__name__, f"{function.__name__}.apply")
        call = "checkpoint" if checkpoint else call
        if has_no_backward(function):
            # A backward pass would end here with an error, and the parameters before this Function are as good as cut;
            # detached, the rest of the model can still be explained.
            call += " without backward"
            for output in tensors_in(result) if self.may_detach else ():
                with contextlib.suppress(RuntimeError):  # a view cannot be detached in place
                    output.detach_()
        for output in tensors_in(result):
            # The output itself too: its graph shows the parameters that `forward` used without being given them.
            parents = [provenance for provenance in (*inputs, self.provenance(output)) if provenance.value]
            merged = Provenance.merged(parents)
            if not merged.value:
                continue
            self.used |= merged.value
            flows = torch.is_grad_enabled() and output.requires_grad and not has_no_backward(function)
            self._note(output, self._after_call(call, merged, merged.gradient if flows else 0, parents))
            self.nodes.note(call, output)
            if flows and output.grad_fn is not None and not checkpoint:
                gradients = [provenance.gradient for provenance in inputs]
                output.grad_fn.register_hook(self._none_returned.hook(gradients, self.grad_mode.line(call)))
        return result
