"""Provenance: which parameters reach a tensor, by value and by gradient, and which reach a storage.

Letters used in this file: a set of parameters is an int, the `mask`, in which bit i stands for parameter i.

Several tensors can share one storage, so that a write through one changes the others. Autograd treats a view and its
base as one tensor, the `root`, and follows a write through either. A tensor made by `.data`, `detach`, numpy or
`nn.Parameter(x)` is a root of its own over the same storage: a write there reaches the others by value alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from frostline.probe.trace.source_line import SourceLine


class Provenance:
    """What is known of one tensor: masks of parameters, and the provenance of the inputs it was computed from.

    Attributes:
        value: Parameters whose value reaches the tensor.
        gradient: Parameters that the tensor's gradient reaches.
        lost: Parameters that the gradients of the call's inputs reach, but the gradient of its output does not.
        line: The line of that call; None if nothing was lost.
        parents: Provenance of the inputs.
    """

    __slots__ = ("gradient", "line", "lost", "parents", "value")

    def __init__(
        self,
        value: int,
        gradient: int,
        lost: int = 0,
        line: SourceLine | None = None,
        parents: Sequence[Provenance] = (),
    ) -> None:
        self.value, self.gradient, self.lost, self.line, self.parents = value, gradient, lost, line, parents

    @classmethod
    def merged(cls, several: Sequence[Provenance]) -> Provenance:
        """Return the union of several, in which nothing is lost."""
        several = [provenance for provenance in several if provenance.value]
        if len(several) < 2:
            return several[0] if several else NOTHING
        value = gradient = 0
        for provenance in several:
            value |= provenance.value
            gradient |= provenance.gradient
        return cls(value, gradient, parents=tuple(several))

    def cuts(self, mask: int, on_every_way: bool = False) -> dict[int, list[SourceLine]]:
        """Find where the gradients of the parameters `mask` were lost on their way from the parameters to here.

        Args:
            mask: The parameters.
            on_every_way: Look also where a gradient comes by another way.

        Returns:
            Index of the parameter -> the lines, in the order in which they ran; no key for one that was not lost.
        """
        found: dict[int, set[SourceLine]] = {}
        done: dict[int, int] = {}  # id of a provenance -> the parameters already followed through it
        waiting = [(self, mask)]
        while waiting:
            provenance, wanted = waiting.pop()
            # Only a path along which a value came, and along which no gradient goes back, leads to a cut.
            followed = provenance.value if on_every_way else provenance.value & ~provenance.gradient
            wanted &= followed & ~done.get(id(provenance), 0)
            if not wanted:
                continue
            done[id(provenance)] = done.get(id(provenance), 0) | wanted
            cut_here = wanted & provenance.lost
            if provenance.line is not None:
                for index in indices_in(cut_here):
                    found.setdefault(index, set()).add(provenance.line)
            # The gradients of this call's inputs still reach what is cut here, so it is not followed further.
            waiting += [(parent, wanted & ~cut_here) for parent in provenance.parents]
        return {index: sorted(lines, key=lambda line: line.order) for index, lines in found.items()}


NOTHING = Provenance(0, 0)


def indices_in(mask: int) -> Iterator[int]:
    """Yield the indices of the parameters in a mask."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Storages:
    """What is known of each storage, by address; a storage that was freed in the meantime is forgotten."""

    def __init__(self) -> None:
        self._last_seen: dict[int, tuple[StorageWeakRef, Provenance]] = {}
        # Of each storage: root that was written through -> provenance of the values it wrote.
        self._written: dict[int, tuple[StorageWeakRef, dict[int, Provenance]]] = {}

    def note_tensor(self, tensor: Tensor, provenance: Provenance) -> None:
        """Note that a tensor with this provenance lies in its storage."""
        storage = _storage(tensor)
        if storage is not None:
            address = storage.data_ptr()
            known = self._last_seen.get(address)
            alive = known is not None and not known[0].expired()
            # A living reference at this address is one to this very storage, so it is used again.
            self._last_seen[address] = known[0] if known is not None and alive else StorageWeakRef(storage), provenance

    def note_write(self, target: Tensor, provenance: Provenance) -> None:
        """Note that a call has written through `target`, which now has this provenance."""
        storage = _storage(target)
        if storage is not None:
            address = storage.data_ptr()
            if not self._writes(address):
                self._written[address] = StorageWeakRef(storage), {}
            self._written[address][1][root(target)] = provenance

    def before_writes(self, tensor: Tensor) -> Provenance:
        """Return what lies in the storage of a tensor that is seen for the first time; NOTHING after a write."""
        address = _address(tensor)
        # After a write `with_writes` tells more: the root it came through, and so whether a gradient follows it.
        if address not in self._last_seen or self._last_seen[address][0].expired() or self._writes(address):
            return NOTHING
        return self._last_seen[address][1]

    def with_writes(self, tensor: Tensor, provenance: Provenance) -> Provenance:
        """Return `provenance`, that of `tensor`, merged with what was written into its storage through others."""
        if not self._written:
            return provenance
        for written_root, write in self._writes(_address(tensor)).items():
            # Autograd lets gradients through a write by a view of the same root; any other gives its values alone.
            followed = written_root == root(tensor) and tensor.requires_grad
            gradient = write.gradient & ~provenance.gradient if followed else 0
            if write is provenance or not (write.value & ~provenance.value or gradient):
                continue
            gradient |= provenance.gradient
            lost = write.gradient & ~gradient
            provenance = Provenance(
                provenance.value | write.value, gradient, lost, write.line if lost else None, (provenance, write)
            )
        return provenance

    def _writes(self, address: int) -> dict[int, Provenance]:
        storage, writes = self._written.get(address, (None, {}))
        return {} if storage is None or storage.expired() else writes


def root(tensor: Tensor) -> int:
    """Return the `id` of what autograd treats as one tensor: the base of a view, else the tensor itself."""
    return id(tensor._base) if tensor._is_view() else id(tensor)


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return the storage of a tensor, or of the one that torch.func wraps; None if it has none of its own."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    try:
        storage = tensor.untyped_storage()
        return storage if storage.data_ptr() else None
    except (RuntimeError, NotImplementedError, ValueError):  # the last of a lazy parameter that has no shape yet
        return None


def _address(tensor: Tensor) -> int:
    storage = _storage(tensor)
    return 0 if storage is None else storage.data_ptr()
