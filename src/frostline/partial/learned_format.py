"""The file of learned values, and of changes: what stands in it, and how it is written and read.

A safetensors file. For each tensor that learns, `NAME` holds the learned values; for rows and entries `NAME:indices`
holds their indices (int64, one column for each indexed dimension); for entries that changed, their indices into the
flat tensor (int32, or int64 where they do not fit; one dimension, ascending). Buffers that training changed (running
statistics) are saved whole. complex128, which safetensors does not know, and complex64 are saved as pairs of real
numbers.

The metadata: `format`, with a number that grows with each version; `tensors`, JSON, which describes each tensor;
`state`, JSON, of a file of changes alone: the digests `before` and `after`, and `parts`, the files beside it that other
processes wrote, each with its SHA-256; and `sha256`, of version, both texts and all tensors, so that a damaged file is
refused. Of a tensor are described
    kind     "rows", "entries", "everything" or "buffer"; in a file of changes "changed" or "everything"
    shape    of the whole tensor                    dtype   of the whole tensor
    base     SHA-256 of what did not learn in it    tied    its other names
    tokens   text of each row that is a token's -> its row
    complex  true where the values are pairs

What reads what: this version reads formats 1 and 2, and writes 2. Format 1, of frostline 0.1.0 before its release, has
`NAME:places` in place of `NAME:indices`, no `sha256`, and says nothing of tokens and ties. A format, a kind or a field
that is not known here is refused: what it means cannot be guessed. (So later versions may add a kind or a field, and no
earlier one misreads them.)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from frostline.errors import LearnedFileError
from frostline.files import replacing
from frostline.partial.tensor.indices import LearnedIndices

_FORMAT = "frostline-learned-"
_INDICES = {1: ":places", 2: ":indices"}  # version of the format -> the suffix of indices
_KINDS = ("rows", "entries", "everything", "buffer", "changed")
_FIELDS = {"kind", "shape", "dtype", "base", "tied", "tokens", "complex"}


@dataclass(frozen=True)
class Saved:
    """What a file holds of one tensor.

    Attributes:
        kind: "rows", "entries", "everything", "buffer" or "changed".
        shape: The shape of the whole tensor.
        dtype: Its dtype, such as "float32".
        values: What was learned.
        indices: Where the values of rows and entries belong; None for the other kinds.
        base: SHA-256 of what did not learn; None where everything did.
        tied: Its other names.
        tokens: Text -> row, for rows that are those of tokens.
        flat: Where the values of changed entries belong: flat indices, ascending, shape (n,).
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    values: Tensor
    indices: LearnedIndices | None = None
    base: str | None = None
    tied: tuple[str, ...] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)
    flat: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        """The rows or entries as one int64 tensor, (R, 1) or (n, dimensions)."""
        assert self.indices is not None
        return torch.stack(self.indices.index, dim=1)


@dataclass(frozen=True)
class Step:
    """From which state to which a file of changes leads.

    Attributes:
        before: The digest of the state that it builds on.
        after: The digest of the state that it leads to.
        parts: Names of further files beside it -> the SHA-256 that stands in each.
    """

    before: str
    after: str
    parts: Mapping[str, str] = field(default_factory=dict)


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a dtype, such as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def write(saved: Mapping[str, Saved], path: Path, step: Step | None = None) -> str:
    """Write the file, atomically; of a link, its target. Return the SHA-256 that stands in it."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, item in saved.items():
        values = torch.view_as_real(item.values.resolve_conj()) if item.values.is_complex() else item.values
        if name in tensors or name + _INDICES[2] in saved:
            raise LearnedFileError(f"{name}: another tensor is called {name}{_INDICES[2]}. Rename one of them.")
        tensors[name] = values.cpu().contiguous().clone()
        about[name] = {"kind": item.kind, "shape": list(item.shape), "dtype": item.dtype}
        if item.indices is not None:
            tensors[name + _INDICES[2]] = item.ids.cpu().contiguous()
        elif item.flat is not None:
            width = torch.int32 if math.prod(item.shape) < 2**31 else torch.int64
            tensors[name + _INDICES[2]] = item.flat.to("cpu", width)
        more = {"base": item.base, "tied": list(item.tied), "tokens": dict(item.tokens)}
        about[name] |= {key: value for key, value in more.items() if value}
        about[name] |= {"complex": True} if item.values.is_complex() else {}
    text = json.dumps(about)
    state = "" if step is None else json.dumps(asdict(step))
    sha256 = _digest(f"2{text}{state}", tensors)
    metadata = {"format": f"{_FORMAT}2", "tensors": text, "sha256": sha256} | ({"state": state} if state else {})
    try:
        if not path.parent.is_dir() or path.is_dir():
            raise LearnedFileError(f"{path}: expected a file in a folder that exists. Make the folder, or name a file.")
        with replacing(path.resolve()) as unfinished:
            save_file(tensors, unfinished, metadata=metadata)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise LearnedFileError(f"{path}: cannot be written: {why}. Name another file.") from None
    return sha256


def read(path: Path) -> dict[str, Saved]:
    """Read a file of learned values that `write` wrote, in this version or an earlier one.

    Raises:
        LearnedFileError: It is damaged, something else, or of a later version.
        FileNotFoundError: There is no such file.
    """
    saved, step, _ = _read(path)
    if step is not None:
        raise LearnedFileError(f"{path}: a file of changes. Pass it to fl.apply_changes.")
    return saved


def read_changes(path: Path) -> tuple[list[tuple[str, Saved]], Step]:
    """Read a file of changes that `write` wrote, and the parts of it that lie beside it.

    Returns:
        The name of each tensor and what changed in it, a tensor once for each part that has some of it; and the step.

    Raises:
        LearnedFileError: One of them is damaged, missing, something else, or of a later version.
        FileNotFoundError: There is no such file.
    """
    saved, step, _ = _read(path)
    if step is None:
        raise LearnedFileError(f"{path}: a file of learned values. Pass it to fl.load_learned.")
    found = [*saved.items()]
    for name, sha256 in step.parts.items():
        beside = path.resolve().with_name(name)
        if Path(name).name != name or not beside.is_file():
            raise LearnedFileError(f"{path}: {name}, which belongs to it, is not beside it. Copy all of its files.")
        part, part_step, its_sha256 = _read(beside)
        if part_step is None or its_sha256 != sha256:
            raise LearnedFileError(f"{path}: {name} belongs to another file. Copy all of its files again.")
        found += part.items()
    return found, step


def is_changes(path: Path) -> bool:
    """Return whether a file that `write` wrote holds changes, not learned values."""
    with safe_open(path, framework="pt") as file:
        return "state" in (file.metadata() or {})


def _read(path: Path) -> tuple[dict[str, Saved], Step | None, str]:
    if path.is_dir():
        raise LearnedFileError(f"{path}: a folder. Pass the file that save_learned or Changes.save wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version = _version(metadata.get("format"))
        text = metadata["tensors"]
        state, sha256 = metadata.get("state", ""), metadata.get("sha256", "")
        if (version > 1 or sha256) and sha256 != _digest(f"{version}{text}{state}", tensors):
            raise ValueError("its SHA-256 is another")
        about = json.loads(text)
        step = _read_step(json.loads(state)) if state else None
        return {str(name): _read_tensor(name, about[name], tensors, version) for name in about}, step, sha256
    except FileNotFoundError:
        raise
    except LearnedFileError as error:
        raise LearnedFileError(f"{path}: {error}") from None
    except OSError as error:
        raise LearnedFileError(f"{path}: cannot be read: {error.strerror or error}. Check the file.") from None
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise LearnedFileError(
            f"{path}: damaged, or not a safetensors file ({reason}). Copy or save it again."
        ) from None


def _read_step(state: dict[str, Any]) -> Step:
    step = Step(str(state["before"]), str(state["after"]), {str(k): str(v) for k, v in state["parts"].items()})
    if unknown := state.keys() - {"before", "after", "parts"}:
        raise LearnedFileError(f"{min(unknown)[:80]!r} is not known to this version of frostline. Update it.")
    return step


def _version(named: object) -> int:
    number = str(named).removeprefix(_FORMAT)
    if not str(named).startswith(_FORMAT) or not number.isdecimal():
        raise LearnedFileError(f"not a file that save_learned wrote (format {named}). Pass one that it wrote.")
    if int(number) not in _INDICES:
        raise LearnedFileError(f"format {number}; this version of frostline reads 1 to {max(_INDICES)}. Update it.")
    return int(number)


def _read_tensor(name: str, item: dict[str, Any], tensors: dict[str, Tensor], version: int) -> Saved:
    if item["kind"] not in _KINDS or not set(item) <= _FIELDS:
        unknown = item["kind"] if item["kind"] not in _KINDS else min(set(item) - _FIELDS)
        raise LearnedFileError(f"{name}: {str(unknown)[:80]!r} is not known to this version of frostline. Update it.")
    shape, dtype, kind = tuple(item["shape"]), item["dtype"], item["kind"]
    values, indices, tokens = tensors[name], None, dict(item.get("tokens", {}))
    if item.get("complex"):
        values = torch.view_as_complex(values)
    if kind in ("rows", "entries"):
        stacked = tensors[name + _INDICES[version]]
        width = 1 if kind == "rows" else len(shape)
        expected = (len(stacked), *shape[1:]) if kind == "rows" else (len(stacked),)
        valid = stacked.dtype == torch.int64 and stacked.shape[1:] == (width,)
        valid = valid and bool(((stacked >= 0) & (stacked < torch.tensor(shape[:width]))).all())
        valid = valid and (values.is_floating_point() or values.is_complex())
        if not valid or values.shape != expected or len(torch.unique(stacked, dim=0)) != len(stacked):
            raise LearnedFileError(f"{name}: its values and indices in the file do not match its shape {shape}.")
        steps = [math.prod(shape[dim + 1 : width]) for dim in range(width)]
        indices = LearnedIndices((stacked * torch.tensor(steps)).sum(1), shape[:width], None)
        if not set(tokens.values()) <= set(stacked[:, 0].tolist()) or len(set(tokens.values())) != len(tokens):
            raise LearnedFileError(f"{name}: its tokens in the file do not match its rows.")
    elif kind == "changed":
        flat = tensors[name + _INDICES[2]]
        valid = flat.dtype in (torch.int32, torch.int64) and flat.shape == values.shape == (flat.numel(),)
        flat = flat.to(torch.int64)
        valid = valid and bool((flat.diff(prepend=flat.new_tensor([-1])) > 0).all())
        if not valid or (len(flat) and int(flat[-1]) >= math.prod(shape)):
            raise LearnedFileError(f"{name}: its values and indices in the file do not match its shape {shape}.")
        return Saved(kind, shape, dtype, values, tied=tuple(item.get("tied", ())), flat=flat)
    elif values.shape != shape:
        raise LearnedFileError(f"{name}: its values in the file do not match its shape {shape}.")
    if kind != "buffer" and values.is_complex() != str(dtype).startswith("complex"):
        raise LearnedFileError(f"{name}: its values in the file do not match its dtype {dtype}.")
    return Saved(kind, shape, dtype, values, indices, item.get("base"), tuple(item.get("tied", ())), tokens)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of version and description, and of all tensors with their names, dtypes and shapes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
