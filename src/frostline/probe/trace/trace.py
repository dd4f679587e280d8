"""Which parameters reach a tensor: by value, and by gradient.

    with Trace(parameters) as trace:
        loss = loss_fn()
    trace.of(loss)          # an Entry: masks of parameters (entry.py)
    trace.cuts(loss, mask)  # where the gradient of each was lost on its way

The idea: a mode sees every call of a torch function before autograd does. For each tensor it notes the parameters whose
value reaches it and those whose gradient can come back through it. Where the output of a call has lost some that its
inputs had, the user's line is noted *on that tensor*. Nothing is blamed while it runs: at the end the way is walked
back from the loss, so a `h.detach().max()` that was only logged is never met. What the trace says is never the truth
about gradients: a real backward is. It only says why there is none, and where.

What a mode cannot see is found in other ways:
    numbers that leave torch      met again when they come back as arguments (numbers.py)
    two tensors over one memory   writes are noted for the memory, so `b.data[:] = h` is seen through `b` (memory.py)
    Function.apply, Parameter(h)  replaced while the trace runs
    no_grad                       torch tells a mode when it is switched on, and so the `with` that did it is known
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from frostline.partial.tensor import PartialTensor, PartialView
from frostline.probe.autograd_graph import leaves_under
from frostline.probe.trace.escaped_numbers import LEAVING, Numbers
from frostline.probe.trace.provenance import NOTHING, Entry, Memory, bits_of
from frostline.probe.trace.source_line import Site, caller, site_here
from frostline.probe.trace.torch_calls import (
    CUTS,
    NO_VALUE,
    has_no_backward,
    inputs_of,
    name_of,
    targets_of,
    tensors_in,
)


class Trace(TorchFunctionMode):
    """Notes, while it is entered, which of `parameters` reach each tensor.

    Args:
        parameters: Leaf tensors; those that do not require a gradient are followed by value alone.

    Attributes:
        used: Mask of the parameters that any call has used.
        asked: Mask of those of which a Python `if` has asked the truth.
        numbers: What left torch.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.used = self.asked = 0
        self.numbers = Numbers()
        self._bits = {id(parameter): 1 << bit for bit, parameter in enumerate(parameters)}
        self._parameters = parameters  # held, so that no id is used twice
        self._known: dict[int, tuple[weakref.ref[Tensor], Entry]] = {}
        self._memory = Memory()
        self._returned: list[tuple[int, Site | None]] = []  # custom Functions whose backward returned None
        self._names: dict[Any, str] = {torch.autograd.grad: "autograd.grad"}  # not to be taken for the attribute
        self._unlinked = 0  # how deep in code where autograd is off although gradients will flow: checkpoints
        self._no_grad_frame: int | None = None
        self._sites = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Trace:
        self._stack.enter_context(_seen_by(self))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    def of(self, value: Any) -> Entry:
        """What is known of a tensor, or of a number that left torch."""
        if not isinstance(value, Tensor):
            return Entry.joined(self.numbers.equal_to(value))
        if isinstance(value, PartialView):
            value = value.origin
        if isinstance(value, PartialTensor):
            return Entry.joined([self.of(value.learned), self.of(value.frozen)])
        known = self._known.get(id(value))
        entry = known[1] if known is not None and known[0]() is value else self._first_sight(value)
        read = self._memory.read(value, entry)
        if read is not entry:
            self._note(value, read)
        return read

    def cuts(self, value: Any, mask: int) -> dict[int, list[Site]]:
        """Where the gradients of the parameters `mask` were lost (`Entry.cuts`), in a backward that ran since too."""
        found = self.of(value).cuts(mask)
        for lost, site in self._returned:
            for bit in bits_of(lost & mask):
                if site is not None:
                    found.setdefault(bit, [site])
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, then note what its outputs carry."""
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled and not args[0] and torch.is_grad_enabled():
            frame = caller("grad_mode.py")
            self._no_grad_frame = None if frame is None else id(frame)
        name = name_of(func)
        writes = [(target, self.of(target)) for target in targets_of(name, args, kwargs)]
        result = func(*args, **kwargs)
        if name not in NO_VALUE:
            with torch._C.DisableTorchFunction():  # other modes need not see what is looked at here
                self._note_call(name, args, kwargs, result, writes)
        return result

    def _note_call(
        self, name: str, args: Any, kwargs: Any, result: Any, writes: Sequence[tuple[Tensor, Entry]]
    ) -> None:
        outputs = tensors_in(result)
        if not outputs and not writes and name not in LEAVING and name != "__bool__":
            return
        entries = [entry for one in inputs_of(name, args, kwargs) if (entry := self.of(one)).value]
        if self.numbers.left:
            entries += self.numbers.back(name, args, kwargs)
        if not entries:
            return
        inside = Entry.joined(entries)
        self.used |= inside.value
        if name == "__bool__":
            self.asked |= inside.value
        elif name in LEAVING:
            entry = self._entry(name, inside, 0, entries)
            entry.site = entry.site or self._site(name)
            self.numbers.leave(entry, result)
        elif writes:
            self._note_writes(name, writes, inside, entries)
        else:
            self._note_outputs(name, outputs, inside, entries)

    def _note_outputs(self, name: str, outputs: Sequence[Tensor], inside: Entry, entries: Sequence[Entry]) -> None:
        implied = self._implied()
        made: dict[bool, Entry] = {}
        for one in outputs:
            if isinstance(one, PartialTensor):  # `weight.detach()`: what is new about it is its learned part
                one = one.learned
                if id(one) in self._bits:
                    continue
            flows = self._flows(name) and (
                one.is_floating_point() or one.is_complex() if implied else one.requires_grad
            )
            if flows not in made:
                made[flows] = self._entry(name, inside, inside.gradient if flows else 0, entries)
            self._note(one, made[flows])

    def _note_writes(
        self, name: str, writes: Sequence[tuple[Tensor, Entry]], inside: Entry, entries: Sequence[Entry]
    ) -> None:
        for target, before in writes:
            if isinstance(target, PartialTensor | PartialView):
                target = (target if isinstance(target, PartialTensor) else target.origin).learned
            flows = self._flows(name) and (self._implied() or target.requires_grad)
            keeps = target.requires_grad and name != "detach_"
            gradient = (before.gradient if keeps else 0) | (inside.gradient if flows else 0)
            entry = self._entry(name, inside, gradient, (before, *entries))
            self._note(target, entry)
            if inside.value & ~before.value:
                if entry.site is None and inside.gradient:  # another tensor over this memory may lose it
                    entry.site = self._site(name)
                self._memory.write(target, entry)

    def _entry(self, name: str, inside: Entry, gradient: int, parents: Sequence[Entry]) -> Entry:
        lost = inside.gradient & ~gradient
        return Entry(inside.value, gradient, lost, self._site(name) if lost else None, tuple(parents))

    def _site(self, call: str) -> Site | None:
        self._sites += 1
        if torch.is_grad_enabled() or self._implied():
            return site_here(call, self._sites)
        call = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        return site_here(call, self._sites, self._no_grad_frame)

    def _implied(self) -> bool:
        """Whether `requires_grad` does not say that a gradient flows: in a checkpoint, under torch.func."""
        return bool(self._unlinked) or torch._C._functorch.peek_interpreter_stack() is not None

    def _flows(self, name: str) -> bool:
        return name not in CUTS if self._implied() else torch.is_grad_enabled()

    def _first_sight(self, tensor: Tensor, call: str = "a tensor made out of sight") -> Entry:
        """What is known of a tensor that no call has returned: a parameter, an input, or one that `call` has made."""
        bit = self._bits.get(id(tensor), 0)
        if bit:
            entry = Entry(bit, bit if tensor.requires_grad else 0)
            self._note(tensor, entry)
            return entry
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return self.of(torch._C._functorch.get_unwrapped(tensor))
        below = self._memory.below(tensor)
        parents = [below] if below.value else self.numbers.held_by(tensor) if self.numbers.left else []
        reached = 0
        for leaf in leaves_under(tensor.grad_fn):
            reached |= self._bits.get(id(leaf), 0)
        origin = Entry.joined([*parents, Entry(reached, 0)])
        if not origin.value:
            return NOTHING
        entry = self._entry(call, origin, reached, parents)
        self._note(tensor, entry)
        return entry

    def _note(self, tensor: Tensor, entry: Entry) -> None:
        key = id(tensor)
        known = self._known

        def forget(gone: weakref.ref[Tensor]) -> None:
            if key in known and known[key][0] is gone:
                del known[key]

        known[key] = weakref.ref(tensor, forget), entry
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # which is unwrapped out of sight, at the end
            self._note(torch._C._functorch.get_unwrapped(tensor), entry)
        else:
            self._memory.note(tensor, entry)

    def made(self, parameter: Tensor) -> None:
        """A Parameter was made, in the line that runs now."""
        self._first_sight(parameter, "nn.Parameter")

    def apply(self, function: Any, args: Any, run: Callable[[], Any]) -> Any:
        """Run a custom autograd.Function, and note what its outputs carry."""
        entries = [self.of(one) for one in args if isinstance(one, Tensor)]
        checkpoint = function.__name__ == "CheckpointFunction"
        self._unlinked += checkpoint
        try:
            result = run()
        finally:
            self._unlinked -= checkpoint
        call = "checkpoint" if checkpoint else f"{function.__name__}.apply"
        if has_no_backward(function):  # a backward pass would stop here with an error
            call += " without backward"
            for one in tensors_in(result):
                with contextlib.suppress(RuntimeError):  # a view cannot
                    one.detach_()
        for one in tensors_in(result):
            carried = [entry for entry in (*entries, self.of(one)) if entry.value]  # closures of `forward` too
            inside = Entry.joined(carried)
            if not inside.value:
                continue
            self.used |= inside.value
            flows = torch.is_grad_enabled() and one.requires_grad
            self._note(one, self._entry(call, inside, inside.gradient if flows else 0, carried))
            if flows and one.grad_fn is not None and not checkpoint:
                one.grad_fn.register_hook(self._noting_none([entry.gradient for entry in entries], self._site(call)))
        return result

    def _noting_none(self, gradients: Sequence[int], site: Site | None) -> Callable[[Any, Any], None]:
        """A hook on a backward that notes the inputs for which it returns None."""

        def look(returned: Any, given: Any) -> None:
            self._returned += [
                (mask, site) for mask, value in zip(gradients, returned, strict=False) if value is None and mask
            ]

        return look


@contextlib.contextmanager
def _seen_by(trace: Trace) -> Iterator[None]:
    """Let `trace` see every autograd.Function that this thread applies, and every Parameter that it makes."""
    function: Any = torch.autograd.Function
    parameter: Any = torch.nn.Parameter
    apply, new = function.__dict__["apply"], parameter.__dict__["__new__"]
    thread = threading.get_ident()

    def seen_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        run = apply.__get__(None, cls)
        if threading.get_ident() != thread:
            return run(*args, **kwargs)
        return trace.apply(cls, (*args, *kwargs.values()), lambda: run(*args, **kwargs))

    def seen_new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        made = new.__func__(cls, *args, **kwargs)
        if threading.get_ident() == thread:
            trace.made(made)
        return made

    function.apply, parameter.__new__ = classmethod(seen_apply), staticmethod(seen_new)
    try:
        yield
    finally:
        function.apply, parameter.__new__ = apply, new
