"""Apply a file of changes to safetensors on a disk: the old or the new state is whole, whenever the process is killed.

One file is copied, patched and renamed over the old one. Of several, those in which something changes get copies with
new names, NAME.DIGEST.safetensors; then the index, which names them, is replaced, and that one step is the change. The
old shards are removed after it. What an interrupted call has left, the next one removes.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from frostline.changes.chain import sums_with
from frostline.changes.checkpoints import main_file, read_checkpoint, weight_map
from frostline.changes.entry_hash import Sums, exchanged
from frostline.changes.processes import Processes
from frostline.changes.read_changes import Change, check_base, check_result, read_changes
from frostline.changes.state_hash import state_digest, state_sums
from frostline.errors import CheckpointError
from frostline.files import replacing

_MARK = re.compile(r"\.[0-9a-f]{8}$")  # of a shard that was patched: the start of the digest of its state


def apply_to_files(target: Path, path: Path) -> str:
    """Apply the file of changes `path` to a folder or a file of safetensors; return the digest that comes out.

    Raises:
        CheckpointError: The target is not safetensors, or not the state that the file builds on.
        LearnedFileError: The file of changes is damaged, or no such file.
    """
    changes, step = read_changes(path)
    state = read_checkpoint(target)
    file = main_file(target) if target.is_dir() else target
    is_index = file.name.endswith(".index.json")
    shards = weight_map(file) if is_index else dict.fromkeys(state, file.name)
    if not all(_is_safetensors(file.parent / shard) for shard in set(shards.values())):
        raise CheckpointError(f"{target}: not safetensors, so nothing can be written into it. Convert it first.")
    sums = state_sums(state, Processes())
    check_base(path, str(target), state_digest(state, sums), step)
    differences: dict[str, Sums] = {}
    of_shard: dict[str, list[Change]] = {}
    for change in changes:
        tensor = change.check(path, state)
        values = tensor.read()
        old = tensor.bits()[change.index]
        tensor.release(values)
        name = tensor.name
        differences[name] = exchanged(differences.get(name, (0, 0)), change.index, old, change.bits)
        of_shard.setdefault(shards[name], []).append(change)
    check_result(path, state_digest(state, sums_with(sums, [differences])), step)
    try:
        if is_index:
            _replace_shards(file, shards, of_shard, step.after)
        elif of_shard:
            with replacing(file.resolve()) as unfinished:
                _write_patched(file, unfinished, changes)
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}"
        raise CheckpointError(f"{target}: {why}. Nothing has changed; make room, or check permissions.") from None
    return step.after


def _replace_shards(index: Path, shards: dict[str, str], of_shard: dict[str, list[Change]], digest: str) -> None:
    folder = index.parent
    renamed = {shard: f"{_plain(shard)}.{digest[:8]}.safetensors" for shard in of_shard}
    for left in folder.glob("*.safetensors"):
        known = left.name in shards.values() or _plain(left.name) not in map(_plain, shards.values())
        if not known and _MARK.search(left.stem):
            left.unlink()
    try:
        for shard, changes in of_shard.items():
            with replacing(folder / renamed[shard]) as unfinished:
                _write_patched(folder / shard, unfinished, changes)
        content = json.loads(index.read_text(encoding="utf-8"))
        content["weight_map"] = {name: renamed.get(shard, shard) for name, shard in shards.items()}
        with replacing(index) as unfinished:
            unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except BaseException:
        if set(weight_map(index).values()).isdisjoint(renamed.values()):
            for name in renamed.values():
                (folder / name).unlink(missing_ok=True)
        raise
    for shard in of_shard:
        with contextlib.suppress(OSError):  # the change is done; what is left is removed the next time
            (folder / shard).unlink(missing_ok=True)


def _plain(shard: str) -> str:
    """Return the name of a shard without its ending and mark."""
    return _MARK.sub("", Path(shard).stem)


def _write_patched(source: Path, target: Path, changes: list[Change]) -> None:
    """Copy a safetensors file, and write the changes into the copy."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    mapped = np.memmap(target, dtype=np.uint8, mode="r+")
    for change in changes:
        start, stop = header[change.name]["data_offsets"]
        # Seen as integers of the size of an entry; a tensor may begin at any byte.
        words = change.bits if change.bits.dim() == 1 else change.bits.view(torch.int64)
        new = words.numpy()
        width = new.dtype.itemsize * (new.shape[1] if new.ndim == 2 else 1)
        shape = ((stop - start) // width, *new.shape[1:])
        np.ndarray(shape, new.dtype, mapped, 8 + size + start)[change.index.numpy()] = new
    mapped.flush()
    del mapped


def _is_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except Exception:  # any that safetensors raises for what is not its own
        return False
