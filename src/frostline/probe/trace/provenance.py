"""What is known of one tensor while a pass is traced: which parameters reach it.

Letters used in this file: a set of parameters is an int, the `mask`, in which bit i stands for the parameter i.

Several tensors over one memory: what was written through one is there in the others.

Autograd knows a view and its base as one tensor, the `root`, and follows a write through either. A tensor made by
`.data`, `detach`, numpy or `nn.Parameter(x)` is a root of its own over the same memory: what is written there reaches
the others by value alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from frostline.probe.trace.source_line import Site


class Entry:
    """Masks of parameters, and the entries they come from.

    Attributes:
        value: Parameters whose value reaches the tensor.
        gradient: Parameters that its gradient reaches.
        lost: Parameters whose gradient reached an input of the call that made it, but not the output.
        site: Where that was; None if nothing was lost.
        parents: Entries of the inputs.
    """

    __slots__ = ("gradient", "lost", "parents", "site", "value")

    def __init__(
        self, value: int, gradient: int, lost: int = 0, site: Site | None = None, parents: Sequence[Entry] = ()
    ) -> None:
        self.value, self.gradient, self.lost, self.site, self.parents = value, gradient, lost, site, parents

    @classmethod
    def joined(cls, entries: Sequence[Entry]) -> Entry:
        """One entry for all of them: nothing is lost in it."""
        entries = [entry for entry in entries if entry.value]
        if len(entries) < 2:
            return entries[0] if entries else NOTHING
        value = gradient = 0
        for entry in entries:
            value |= entry.value
            gradient |= entry.gradient
        return cls(value, gradient, parents=tuple(entries))

    def cuts(self, mask: int) -> dict[int, list[Site]]:
        """Where the gradients of the parameters `mask` were lost on their way from them to here.

        Returns:
            Number of the parameter -> the sites, in the order in which they ran; none for one that was not lost.
        """
        found: dict[int, set[Site]] = {}
        done: dict[int, int] = {}
        waiting = [(self, mask)]
        while waiting:
            entry, wanted = waiting.pop()
            wanted &= entry.value & ~entry.gradient & ~done.get(id(entry), 0)
            if not wanted:
                continue
            done[id(entry)] = done.get(id(entry), 0) | wanted
            hit = wanted & entry.lost
            if entry.site is not None:
                for bit in bits_of(hit):
                    found.setdefault(bit, set()).add(entry.site)
            waiting += [(parent, wanted & ~hit) for parent in entry.parents]
        return {bit: sorted(sites, key=lambda site: site.order) for bit, sites in found.items()}


NOTHING = Entry(0, 0)


def bits_of(mask: int) -> Iterator[int]:
    """The numbers of the parameters in a mask."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Memory:
    """What stands in memory, by address; memory that was freed in the meantime is forgotten."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[StorageWeakRef, Entry]] = {}
        self._written: dict[int, tuple[StorageWeakRef, dict[int, Entry]]] = {}

    def note(self, tensor: Tensor, entry: Entry) -> None:
        """A tensor is seen: what it carries stands in its memory."""
        storage = _storage(tensor)
        if storage is not None:
            address = storage.data_ptr()
            known = self._seen.get(address)
            alive = known is not None and not known[0].expired()
            self._seen[address] = known[0] if known is not None and alive else StorageWeakRef(storage), entry

    def below(self, tensor: Tensor) -> Entry:
        """What stands in the memory of a tensor that is seen for the first time, writes apart."""
        address = _address(tensor)
        if address not in self._seen or self._seen[address][0].expired() or self._writes(address):
            return NOTHING
        return self._seen[address][1]

    def write(self, target: Tensor, entry: Entry) -> None:
        """Something was written through `target`, which now carries what `entry` says."""
        storage = _storage(target)
        if storage is not None:
            address = storage.data_ptr()
            if not self._writes(address):
                self._written[address] = StorageWeakRef(storage), {}
            self._written[address][1][root(target)] = entry

    def read(self, tensor: Tensor, entry: Entry) -> Entry:
        """`entry`, what `tensor` carries, together with what was written into its memory through others."""
        if not self._written:
            return entry
        for written_root, write in self._writes(_address(tensor)).items():
            follows = written_root == root(tensor) and tensor.requires_grad
            gradient = write.gradient & ~entry.gradient if follows else 0
            if write is entry or not (write.value & ~entry.value or gradient):
                continue
            gradient |= entry.gradient
            lost = write.gradient & ~gradient
            entry = Entry(entry.value | write.value, gradient, lost, write.site if lost else None, (entry, write))
        return entry

    def _writes(self, address: int) -> dict[int, Entry]:
        storage, writes = self._written.get(address, (None, {}))
        return {} if storage is None or storage.expired() else writes


def root(tensor: Tensor) -> int:
    """`id` of what autograd takes for one tensor: the base of a view, else the tensor itself."""
    return id(tensor._base) if tensor._is_view() else id(tensor)


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """The memory of a tensor, or of the one that torch.func wraps; None where it has none of its own."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    try:
        storage = tensor.untyped_storage()
        return storage if storage.data_ptr() else None
    except (RuntimeError, NotImplementedError):
        return None


def _address(tensor: Tensor) -> int:
    storage = _storage(tensor)
    return 0 if storage is None else storage.data_ptr()
