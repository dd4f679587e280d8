"""Write what changed in a model since the last time: a chain of small files, each of which leads from state to state.

Letters used for shapes in this file:
    k  entries that changed

A file names flat indices and values as they are now, so nothing is computed when it is applied, and nothing is rounded.
It names the digests of the state that it builds on and of the one that it leads to, so a gap in the chain is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from frostline.changes.entry_hash import Sums, added, exchanged
from frostline.changes.one_pass import Differing, differing, values_of
from frostline.changes.processes import Processes
from frostline.changes.state import State, StateTensor, live_state
from frostline.changes.state_hash import owned, state_digest, state_sums
from frostline.changes.stepped_rows import stepped_rows
from frostline.errors import CheckpointError, LearnedFileError
from frostline.optim import huge_pages
from frostline.optim.row_optimizer import RowOptimizer
from frostline.partial import learned_format
from frostline.partial.arguments import check_model
from frostline.partial.learned_format import Saved, Step


class Changes:
    """What changed in a model, bit for bit, since it was made or last saved.

    If the model is sharded (FSDP2), every process makes one and calls `save`: each writes what it holds, once for all
    replicas, and the first writes `path`, which names the other files. Under DistributedDataParallel the first process
    of those that call writes everything; a call waits for no other process.

    Args:
        model: A module, partial or not. It may be wrapped in DistributedDataParallel or compiled.
        optimizers: Row optimizers (`fl.optim`) that step tables of it. Of these tables no copy is kept: each optimizer
            says which rows it is about to change, and `save` checks that nothing else has changed the table.

    Raises:
        CheckpointError: A tensor has no bits to compare (sparse, on the meta device).
        TypeError: Another optimizer: it does not say which rows it changes.

    Cost: a copy of the `state_dict()`, on its device; if sharded, of what each process holds; of tables that row
        optimizers step, of the rows that they have changed, and a byte a row. Digests as `fl.digest`.

    Example:
        >>> import frostline as fl, tempfile
        >>> model = nn.Linear(3, 2)
        >>> twin = nn.Linear(3, 2)
        >>> _ = twin.load_state_dict(model.state_dict())
        >>> changes = fl.Changes(model)
        >>> with torch.no_grad():
        ...     _ = model.weight[1, 2].add_(1.0)
        >>> folder = tempfile.mkdtemp()
        >>> print(changes.save(f"{folder}/step-1.safetensors"))
        weight: 1 of 6 entries
        >>> fl.apply_changes(twin, f"{folder}/step-1.safetensors") == fl.digest(model)
        True
    """

    def __init__(self, model: nn.Module, *optimizers: RowOptimizer) -> None:
        for optimizer in optimizers:
            if not isinstance(optimizer, RowOptimizer):
                name = type(optimizer).__name__
                raise TypeError(
                    f"optimizers: {name}, but only those of fl.optim say which rows they change. Leave it out."
                )
        check_model(model)
        self._model, self._processes = model, Processes(model)
        state = live_state(model)
        self._like = {name: _described(tensor) for name, tensor in state.items()}
        self._owned = owned(state, self._processes)
        self._stepped = stepped_rows(model, state, optimizers)
        self._base = {name: _copied(tensor.bits()) for name, tensor in state.items() if name not in self._stepped}
        self._sums = state_sums(state, self._processes)
        self._digest = state_digest(state, self._sums)
        self._next: tuple[dict[str, list[Differing]], dict[str, Sums], str] | None = None

    @property
    def digest(self) -> str:
        """`fl.digest` of the state that the next file builds on."""
        return self._digest if self._next is None else self._next[2]

    @torch.no_grad()
    def save(self, path: str | os.PathLike[str]) -> Saving:
        """Write what changed since the last file, or since this object was made; the next file builds on this state.

        Args:
            path: Where to write; conventionally ends in `.safetensors`. Written whole or not at all, as `save_learned`
                writes; of a sharded model, further files beside it.

        Returns:
            What was written; prints as one line for each tensor.

        Raises:
            CheckpointError: Names, shapes or dtypes are others than when this object was made; or something other than
                its row optimizers has changed a table that they step.
            LearnedFileError: The file cannot be written. Then the next `save` builds on the same state as this one.

        Cost: reads the state and its copy once, and writes about six bytes for each bfloat16 entry that changed (eight
            for float32). A tensor of which this would take more than the tensor itself is written whole.
        """
        self._move()
        state = live_state(self._model)
        self._check(state)
        found = {
            name: [*differing(tensor.bits(), self._base[name])]
            if name in self._base
            else self._stepped[name].differing()
            for name, tensor in state.items()
        }
        sums = self._sums_after(state, found)
        self._check_stepped(state, sums)
        saved = {name: _saved(state[name], parts) for name, parts in found.items() if parts and name in self._owned}
        digest = state_digest(state, sums)
        self._write(saved, Path(path), Step(self.digest, digest))
        self._next = found, sums, digest  # from here on the file counts; if this is interrupted, the next call goes on
        self._move()
        for rows in self._stepped.values():
            rows.forget()
        return Saving({name: sum(len(part.index) for part in parts) for name, parts in found.items() if parts}, state)

    def _move(self) -> None:
        """Let the copy of the state be that of the last file."""
        if self._next is None:
            return
        found, sums, digest = self._next
        for name, parts in found.items():
            for part in parts:
                if name in self._stepped:
                    self._stepped[name].put(part.index, part.new)
                else:
                    put_bits(self._base[name], part.index, part.new)
        self._sums, self._digest = sums, digest
        self._next = None

    def _check(self, state: State) -> None:
        now = {name: _described(tensor) for name, tensor in state.items()}
        if now == self._like:
            return
        name = min(name for name in now.keys() | self._like.keys() if now.get(name) != self._like.get(name))
        is_now, was = now.get(name, "missing"), self._like.get(name, "missing")
        raise CheckpointError(f"{name}: it was {was} when this Changes was made and is {is_now}. Make a new one.")

    def _check_stepped(self, state: State, sums: Mapping[str, Sums]) -> None:
        """Raise if a table has other bits than those that row optimizers have left there."""
        now = state_sums({name: state[name] for name in self._stepped}, Processes())
        for name, found in now.items():
            if found != sums[name]:
                raise CheckpointError(
                    f"{name}: something other than its row optimizer has changed it. Leave the optimizer out here."
                )

    def _sums_after(self, state: State, found: Mapping[str, Iterable[Differing]]) -> dict[str, Sums]:
        mine: dict[str, Sums] = {}
        for name, parts in found.items():
            for part in parts if name in self._owned or not self._processes.are_several else ():
                index = state[name].global_index(part.index)
                mine[name] = exchanged(mine.get(name, (0, 0)), index, part.old, part.new)
        return sums_with(self._sums, self._processes.gathered(mine))

    def _write(self, saved: dict[str, Saved], path: Path, step: Step) -> None:
        if not self._processes.are_several:
            if self._processes.is_first:
                learned_format.write(saved, path, step)
            return
        is_first, error = self._processes.is_first, None
        number = self._processes.number
        beside = path.with_name(f"{path.stem}.{step.after[:8]}.{number:05d}{path.suffix}")
        wrote: tuple[str, str] | None = None
        try:
            if saved and not is_first:
                wrote = beside.name, learned_format.write(saved, beside, step)
        except LearnedFileError as problem:
            error = problem
        parts = dict(each for each in self._processes.gathered(wrote) if each is not None)
        try:
            if is_first and error is None:
                learned_format.write(saved, path, Step(step.before, step.after, parts))
        except LearnedFileError as problem:
            error = problem
        self._processes.raise_together(error)


class Saving:
    """What `Changes.save` wrote.

    Attributes:
        entries: Name of each tensor in which something changed -> how many entries; if it is sharded, of this process.
    """

    def __init__(self, entries: dict[str, int], state: State) -> None:
        self.entries = entries
        self._numel = {name: state[name].numel for name in entries}

    def __str__(self) -> str:
        lines = [f"{name}: {n:,} of {self._numel[name]:,} entries" for name, n in self.entries.items()]
        return "\n".join(lines) or "nothing changed"

    __repr__ = __str__


def sums_with(sums: Mapping[str, Sums], differences: Iterable[Mapping[str, Sums]]) -> dict[str, Sums]:
    """Return the hashes of a state with the differences that processes found."""
    total = dict(sums)
    for mine in differences:
        for name, difference in mine.items():
            total[name] = added(total[name], difference)
    return total


def put_bits(bits: Tensor, index: Tensor, new: Tensor) -> None:
    """Write bits (k,) at flat indices (k,) of a contiguous tensor's bits."""
    if bits.device.type == "cpu":
        bits.numpy()[index.numpy()] = new.numpy()  # several times as fast as torch
    else:
        bits[index] = new


def _copied(bits: Tensor) -> Tensor:
    """Return a copy, in huge pages where it is large: they make the pass over it a tenth faster."""
    return huge_pages.full(bits.shape, 0, bits.dtype, bits.device).copy_(bits)


def _described(tensor: StateTensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" + (
        "" if tensor.held is None else f", of which it holds {[(span.start, span.stop) for span in tensor.held]}"
    )


def _saved(tensor: StateTensor, parts: list[Differing]) -> Saved:
    """Return what a file holds of a tensor: the entries that changed, or all if that is less."""
    k, size = sum(len(part.index) for part in parts), tensor.dtype.itemsize
    about = tensor.shape, str(tensor.dtype).removeprefix("torch.")
    tied = tensor.names[1:]
    if tensor.held is None and k * (size + 4) > tensor.numel * size:
        return Saved("everything", *about, tensor.read().resolve_conj().resolve_neg(), tied=tied)
    index = tensor.global_index(torch.cat([part.index for part in parts]))
    values = values_of(torch.cat([part.new for part in parts]), tensor.dtype)
    return Saved("changed", *about, values, tied=tied, flat=index)
