"""Keep the memory of a frozen part current: at its learned positions it holds a copy of what is learned.

Letters used for shapes in this file:
    V  rows of the tensor         *  the rest of its shape

So whatever reads the memory sees the whole tensor: a state dict, a closure, numpy, C++. A tensor may be written through
either part: the learned one by an optimizer, the frozen one by loading, by `weight[1] = 0` or through any view. Version
counters of autograd tell what was written since both parts were last the same; if both were, the learned part wins.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from frostline.errors import PartialTensorError
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.raw_parts import RawParts

_LOCK = threading.RLock()  # several threads may run one model


class Memory:
    """The memory of a frozen part. All modules that own the tensor share one; it is made with the plan.

    Attributes:
        indices: What learns.
        looked_up: Whether every owner only looks rows up. Then the copy is made when something else asks for it, not
            after every step, so that a step costs what it uses.
        shown: The PartialTensor that was made last, a weak reference.
        in_use: Whether the plan that it was made with is in force.
        mesh: The processes over which tensor parallelism has split the frozen part, a DeviceMesh; else None.
    """

    def __init__(self, indices: LearnedIndices, looked_up: bool, mesh: Any = None) -> None:
        self.indices = indices
        self.looked_up = looked_up
        self.mesh = mesh
        self.in_use = True
        self.shown: weakref.ref[Any] | None = None
        self._parts: tuple[weakref.ref[Tensor], weakref.ref[Tensor]] | None = None
        self._stamps: tuple[_Stamp, _Stamp] = (0, 0), (0, 0)  # of both parts when they were last the same
        self._raw: RawParts | None = None
        self._writable: int | None = None  # address of the frozen part when it was last known to be writable

    def __deepcopy__(self, memo: dict[int, object]) -> Memory:
        return Memory(self.indices, self.looked_up, self.mesh)

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, (self.indices, self.looked_up, self.mesh)

    def check_in_use(self) -> None:
        """Raise PartialTensorError if a later plan, or a merge, has replaced the parts.

        A weight that was taken from its module before would show values that no module uses any more, and a gradient or
        a write would reach neither the model nor an optimizer.
        """
        if not self.in_use:
            raise PartialTensorError(
                "a partial tensor was taken from its module before a later plan or a merge. "
                "Take it from the module again: module.weight."
            )

    def is_new(self) -> bool:
        """Return whether no parts were seen yet, or none that still exist: those of a copied or converted module."""
        return self._parts is None or any(part() is None for part in self._parts)

    def forget(self) -> None:
        """Forget the parts: what was taken from them is of no use any more."""
        self._parts = None

    def knows(self, frozen: Tensor, learned: Tensor) -> bool:
        """Return whether these are the parts that were seen last."""
        return self._parts is not None and self._parts[0]() is frozen and self._parts[1]() is learned

    def note(self, frozen: Tensor, learned: Tensor) -> None:
        """Note that both parts hold the same values now."""
        if not self.knows(frozen, learned):
            self._parts = weakref.ref(frozen), weakref.ref(learned)
            self._writable = frozen.data_ptr() if may_be_written(frozen) else None
        self._stamps = _stamp(frozen), _stamp(learned)
        if self._raw is not None and self._raw.many and self._raw.fits(frozen, learned):
            self._raw.remember()

    def is_synced(self, frozen: Tensor) -> bool:
        """Return whether nothing but `sync` has written to the frozen part since it ran last."""
        return self._stamps[0] == _stamp(frozen)

    def seems_changed(self, frozen: Tensor, learned: Tensor) -> bool:
        """Return whether a part was written since they were last the same; of a looked-up table, the frozen part."""
        return (
            not self.knows(frozen, learned)
            or self._stamps[0] != _stamp(frozen)
            or (not self.looked_up and self._stamps[1] != _stamp(learned))
        )

    def sync(self, frozen: Tensor, learned: Tensor) -> None:
        """Make both parts hold the same values at the learned indices. Cost: one write of what learns."""
        if frozen.is_meta or learned.is_meta or self.indices.read_only:
            return
        with _LOCK, torch._C.DisableTorchFunction(), torch._C._DisableFuncTorch():
            if self._is_current(frozen, learned):
                return
            unchanged = self._stamps[1] == _stamp(learned) and self.knows(frozen, learned)
            if unchanged and self._stamps[0] != _stamp(frozen):
                self.indices.update(learned, frozen.detach())
            else:
                self.make_writable(frozen)
                self._copy(frozen, learned, counted=not unchanged)  # if uncounted, graphs that saved it stay valid
            self.note(frozen, learned)

    def _is_current(self, frozen: Tensor, learned: Tensor) -> bool:
        """Return whether both parts are known to hold the same values.

        They are compared even if nothing seems changed: `.data`, other processes and C++ write without being counted.
        On other devices that would wait for them, and cannot be captured in a graph.
        """
        seems = self._stamps == (_stamp(frozen), _stamp(learned)) and self.knows(frozen, learned)
        return seems and frozen.device.type == "cpu" and self._same(frozen, learned)

    def _raw_parts(self, frozen: Tensor, learned: Tensor) -> RawParts:
        if self._raw is None or not self._raw.fits(frozen, learned):
            with torch._C.DisableTorchFunction(), torch._C._DisableFuncTorch():
                self._raw = RawParts(frozen, learned, self.indices)
        return self._raw

    def _same(self, frozen: Tensor, learned: Tensor) -> bool:
        same = self._raw_parts(frozen, learned).same()
        return self.indices.holds(frozen, learned) if same is None else same

    def _copy(self, frozen: Tensor, learned: Tensor, counted: bool) -> None:
        """Write what is learned to the frozen part; as autograd counts writes, or uncounted."""
        version = version_of(frozen)
        if frozen.device.type != "cpu" or not self._raw_parts(frozen, learned).copy():
            self.indices.scatter_(frozen, learned)
        if not frozen.is_inference():
            torch._C._autograd._unsafe_set_version_counter((frozen,), (version + counted,))

    def make_writable(self, frozen: Tensor) -> None:
        """Move the frozen part, once, out of memory that may be read-only."""
        if self._writable != frozen.data_ptr():
            self._writable = writable(frozen).data_ptr()

    def restorer(self, frozen: Tensor, learned: Tensor) -> Callable[[], None]:
        """Return a function that takes back what `sync` does from now on, once the learned part is as it is now."""
        raw = self._raw
        self.sync(frozen, learned)
        before, version = (self._parts, self._stamps, self.shown, raw), frozen._version

        def restore() -> None:
            if frozen._version != version:
                self.indices.scatter_(frozen, learned.detach())
                torch._C._autograd._unsafe_set_version_counter((frozen,), (version,))
            self._parts, self._stamps, self.shown, self._raw = before

        return restore


_Stamp = tuple[int, int]  # address and version counter


def _stamp(tensor: Tensor) -> _Stamp:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def version_of(tensor: Tensor) -> int:
    """Return how often autograd knows `tensor` to have been written to; 0 where it does not count."""
    return 0 if tensor.is_inference() else tensor._version


_own_memory: Any = WeakTensorKeyDictionary()  # tensor -> the address where its memory was found to be torch's own


def writable(tensor: Tensor) -> Tensor:
    """Return `tensor`, in memory that can be written to.

    Its data may be copied, once, into memory of torch's own. Tied tensors are one object, so they stay tied.
    """
    if not may_be_written(tensor):
        with torch.inference_mode(False):  # or nothing could learn in the copy
            tensor.data = tensor.data.clone()
    return tensor


def may_be_written(tensor: Tensor) -> bool:
    """Return whether it is certain that writing to `tensor` does not crash.

    Memory that torch did not allocate (numpy's, a mapped file's) may be read-only. A tensor's own memory looks the same
    once `tensor.numpy()` was called, so the address is noted before.
    """
    if tensor.device.type != "cpu" or tensor.is_meta:
        return True
    address = tensor.data_ptr()
    if tensor.untyped_storage().resizable() or tensor.is_shared():
        _own_memory[tensor] = address
    return bool(_own_memory.get(tensor) == address)
