"""A tagger on disk: a folder of three files, written atomically and validated when read.

    config.json         {"kind": "frostline tagger", "format": 3, "tags": [...], "crf": whether a CRF scores them,
                        "missing": how many words learned}
    words.json          the word of row 2, 3, ... of the table
    model.safetensors   the network's tensors, float32, under their plain names; the table is `embed.weight`;
                        `char_cnn.weight` exists where characters are read

While `frostline tagger train` runs, the folder holds a checkpoint (see training/checkpoint.py), which is removed at the
end; then the folder also holds the files of a run folder (see `frostline.record.run_folder`).
Sizes are read from the tensors themselves, so that a file can claim no more memory than it has bytes.
"""

from __future__ import annotations

import glob
import json
import os
import re
import reprlib
import secrets
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frostline.errors import ModelFolderError
from frostline.files import is_unfinished, replace_folder
from frostline.record.run_folder import CURVES, ROW_CHANGES
from frostline.record.valid import HOLDS
from frostline.tagger.data.tags import is_iob2_tag
from frostline.tagger.data.vocabulary import Vocabulary
from frostline.tagger.network.model import LSTMTagger

if TYPE_CHECKING:
    from frostline.partial import Plan

KIND, FORMAT = "frostline tagger", 3
CONFIG, WORDS, TENSORS = "config.json", "words.json", "model.safetensors"
CHECKPOINT = "training.safetensors"  # of an unfinished training run; the saved tagger replaces it
_CHECKPOINT_COPIES = 10  # of what learns: five in each checkpoint, and the next is written before the last is removed
_RUN_FILES = 100_000  # bytes, about, of the files of a run folder
_BLOCK = 10_000  # words or rows of a tensor in memory at a time
_CHAR_CNN = "char_cnn.weight"  # of a tagger that reads characters
_OURS = {CONFIG, WORDS, TENSORS, CURVES, ROW_CHANGES, *HOLDS, "report.html"}


def check_free(path: str | os.PathLike[str]) -> None:
    """Raise ModelFolderError unless a tagger can be written to `path`.

    The path must be free, an empty folder, or a folder of a tagger and what its training left: anything else in it
    would be lost.
    """
    target = Path(path)
    if target.is_dir():
        if foreign := _foreign(target):
            raise ModelFolderError(
                f"{target}: a folder that holds something other than a tagger: {foreign!r}. Name another folder."
            )
        if os.path.ismount(target.resolve()) or target.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise ModelFolderError(
                f"{target}: a mount point, or the folder you are in, cannot be replaced as a whole. Name one inside it."
            )
    elif target.exists() or target.is_symlink():
        raise ModelFolderError(f"{target}: a file, but a folder is to be written. Name another folder.")
    above = next(folder for folder in target.resolve().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ModelFolderError(f"{target}: cannot be written, because {above} is not a folder that you may write to.")


def check_space(path: str | os.PathLike[str], plan: Plan, word_bytes: int) -> None:
    """Raise ModelFolderError unless a training can write its checkpoints and its tagger next to what is at `path` now.

    Args:
        path: The folder.
        plan: What the model has, and what of it learns.
        word_bytes: Bytes of the words of the vectors.

    Room that a quota or a limit on the size of files takes away is not seen here.
    """
    learned = sum(line.learned for line in plan.lines)
    size = 4 * sum(line.total for line in plan.lines) + 4 * _CHECKPOINT_COPIES * learned + word_bytes + _RUN_FILES
    above = next(folder for folder in (Path(path).absolute(), *Path(path).absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(above).free
    if free < size:
        raise ModelFolderError(
            f"{path}: {size / 1e6:,.1f} MB will be written there, and {free / 1e6:,.1f} MB are free. Make room, or "
            f"name another folder."
        )


def save(
    path: str | os.PathLike[str],
    model: LSTMTagger,
    vocabulary: Vocabulary,
    tags: list[str],
    *,
    keep_checkpoint: bool = False,
) -> None:
    """Write a tagger to the folder `path`: first next to it under another name, then renamed.

    With `keep_checkpoint` the checkpoint that is in the folder stays there, for the run to be resumed.

    Raises:
        ModelFolderError: Something else is there, or it cannot be written.
    """
    check_free(path)
    target = Path(path).resolve()
    written = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    _remove_unfinished(target)
    try:
        written.mkdir(parents=True)
        crf = model.head.crf is not None
        config = {"kind": KIND, "format": FORMAT, "tags": tags, "crf": crf, "missing": vocabulary.missing}
        (written / CONFIG).write_text(json.dumps(config, indent=1), encoding="ascii")
        with (written / WORDS).open("w", encoding="ascii") as file:
            file.writelines(_json_list(vocabulary.words))
        tensors = {name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, written / TENSORS)
        (written / TENSORS).chmod((written / WORDS).stat().st_mode)  # safetensors lets only the owner read
        if keep_checkpoint and (target / CHECKPOINT).exists():
            _link(target / CHECKPOINT, written / CHECKPOINT)
        replace_folder(written, target)
    except BaseException as error:
        if not isinstance(error, OSError | SafetensorError):
            raise
        raise ModelFolderError(f"{target}: cannot be written: {error}. Make room, or name another folder.") from None
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _remove_unfinished(target: Path) -> None:
    """Remove what processes that were killed left beside `target` while they replaced it."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.????????"):
        if re.fullmatch(r"[0-9a-f]{8}", folder.name[-8:]) and folder.is_dir() and not _foreign(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _link(file: Path, name: Path) -> None:
    """Give a file a second name, or copy it where that cannot be."""
    try:
        name.hardlink_to(file)
    except OSError:
        shutil.copy2(file, name)


def load(path: str | os.PathLike[str]) -> tuple[LSTMTagger, Vocabulary, list[str]]:
    """Return the model (in eval mode, nothing learns), the vocabulary and the tags of the folder `path`.

    Raises:
        ModelFolderError: The folder is missing, damaged or not of this format; the message names the file.
    """
    source = Path(path)
    if not source.is_dir():
        raise ModelFolderError(f"{source}: no such folder. Name one that `frostline tagger train --out` wrote.")
    if not (source / CONFIG).exists() and (source / CHECKPOINT).exists():
        raise ModelFolderError(f"{source}: its training has not ended. Pass --resume to `frostline tagger train`.")
    config = _json(source / CONFIG)
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise ModelFolderError(f"{source / CONFIG}: not the configuration of a frostline tagger.")
    if config.get("format") != FORMAT:
        raise ModelFolderError(
            f"{source / CONFIG}: format {reprlib.repr(config.get('format'))}; this version reads format {FORMAT}. "
            f"Train again, or use the version of frostline that wrote it."
        )
    tags, crf, missing = config.get("tags"), config.get("crf"), config.get("missing")
    words = _json(source / WORDS)
    if not _all_text(tags) or not tags or len(set(tags)) != len(tags) or not all(map(is_iob2_tag, tags)):
        raise ModelFolderError(
            f"{source / CONFIG}: 'tags' must be a list of different strings: O, B-type, I-type. Train again."
        )
    if not isinstance(crf, bool):
        raise ModelFolderError(f"{source / CONFIG}: 'crf' must be true or false. Train again.")
    if not _all_text(words) or len(set(words)) != len(words):
        raise ModelFolderError(f"{source / WORDS}: must be a list of different strings. Train again.")
    if type(missing) is not int or not 0 <= missing <= len(words):
        raise ModelFolderError(f"{source / CONFIG}: 'missing' must be a number from 0 to {len(words)}. Train again.")
    vocabulary = Vocabulary(words, missing)
    return _model(source / TENSORS, len(vocabulary), tags, crf), vocabulary, tags


def _model(path: Path, rows: int, tags: list[str], crf: bool) -> LSTMTagger:
    try:
        tensors: dict[str, Tensor] = load_file(path)
        width, shape_width = tensors["embed.weight"].shape[1], tensors["shape.weight"].shape[1]
        hidden = tensors["forwards.weight_hh_l0"].shape[1]
        sizes = {"head.linear.bias": (len(tags),)} | ({"head.crf.transitions": (len(tags),) * 2} if crf else {})
        for name, size in sizes.items():
            if tensors[name].shape != size:
                raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}, and {len(tags)} tags need {size}")
        filters = tensors[_CHAR_CNN].shape[-1] if _CHAR_CNN in tensors else 0
        table = torch.empty(rows, width, device="meta")
        with _NoInit():
            model = LSTMTagger(table, tags, hidden, shape_width, dropout=0.0, crf=crf, char_filters=filters)
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32 or not all(block.isfinite().all() for block in tensor.split(_BLOCK)):
                raise ValueError(f"{name} does not hold finite float32 values")
        model.load_state_dict(tensors, assign=True)
    except KeyError as error:
        raise ModelFolderError(f"{path}: damaged: no tensor {error}. Train again, or copy it again.") from None
    except (SafetensorError, OSError, ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelFolderError(f"{path}: damaged: {reason}. Train again, or copy it again.") from None
    return model.requires_grad_(False).eval()


class _NoInit(TorchFunctionMode):
    """Skip the random initialisation of weights: on the meta device it would import torch's compiler, for a second."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return None if func is nn.init.normal_ else func(*args, **(kwargs or {}))


def _json_list(words: Iterable[str]) -> Iterator[str]:
    """Yield the JSON of a list, a block of words at a time."""
    left = iter(words)
    separator = "["
    while block := list(islice(left, _BLOCK)):
        yield separator + json.dumps(block)[1:-1]
        separator = ", "
    yield "]" if separator == ", " else "[]"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelFolderError(f"{path}: cannot be read: {reason}. Train again, or copy the whole folder.") from None


def _all_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _foreign(folder: Path) -> str | None:
    """Return the name of something in `folder` that no training of a tagger wrote."""
    passing = {CHECKPOINT, *_OURS}
    names = {path.name for path in folder.iterdir() if not is_unfinished(path.name, passing)} - {CHECKPOINT}
    if not names:
        return None
    try:
        config = _json(folder / CONFIG)
    except ModelFolderError:
        config = None
    ours = isinstance(config, dict) and config.get("kind") == KIND
    return min(names - (_OURS if ours else set()), default=None)
