"""`frostline diff A B`: which tensors, rows and entries differ between two checkpoints, bit for bit."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.changes.differences import Difference, TensorDifference

HELP = "which tensors, rows and entries differ between two checkpoints, bit for bit"

_EXAMPLES = """\
examples:
  frostline diff base/ tuned/ --rows
  frostline diff model.safetensors checkpoint.pt --only 'embed.*'
  frostline diff base.safetensors new_tokens.safetensors
  frostline diff base.safetensors+monday.safetensors base.safetensors+friday.safetensors --json

A and B: a safetensors file, a file of torch.save (state dicts; no code is run), a folder of Hugging Face or of
torch.distributed.checkpoint. BASE+FILE is a checkpoint with a file of save_learned or Changes.save laid over it; such a
FILE alone as B is laid over A.
Exit codes: 0 the same; 1 different; 2 cannot compare. With --only: 0 nothing else differs; 1 something else does."""
_ROWS = 20  # that are printed of a tensor
_TENSORS = 40  # that are printed without --all


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument("a", metavar="A", help="a checkpoint")
    parser.add_argument("b", metavar="B", help="another one, or what is laid over A")
    parser.add_argument("--rows", action="store_true", help="list the rows that differ, with their words or tokens")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        help="a name or pattern that may differ; may be given several times",
    )
    parser.add_argument("--all", action="store_true", help=f"list all tensors that differ, not {_TENSORS}")
    parser.add_argument("--json", action="store_true", help="print one JSON object: tensors, only_in_a, only_in_b, ...")


def run(args: argparse.Namespace) -> int:
    """Compare and print; return 0 or 1."""
    from frostline.changes import diff
    from frostline.changes.progress import Progress

    with warnings.catch_warnings(record=True) as notes, Progress("compared") as progress:
        warnings.simplefilter("always", UserWarning)
        found = diff(args.a, args.b, rows=args.rows, progress=progress)
    for note in notes:
        print(f"frostline: {note.message}", file=sys.stderr)
    others = None if args.only is None else [name for name in _moved(found) if not _matches(name, args.only)]
    if args.json:
        extra = {} if others is None else {"others": others}
        print(json.dumps(found.to_dict() | extra, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_lines(found, args)))
        if others:
            print("differs, and is not named by --only: " + ", ".join(others))
    return int(bool(others)) if others is not None else int(not found.is_same)


def _moved(found: Difference) -> list[str]:
    return [*found.changed, *found.ties]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _lines(found: Difference, args: argparse.Namespace) -> list[str]:
    from frostline.printing import text_table

    lines = []
    moved = {name: tensor for name, tensor in found.tensors.items() if tensor.entries}
    blocks: dict[str, list[TensorDifference]] = {}
    for name, tensor in found.tensors.items():
        blocks.setdefault(block_of(name), []).append(tensor)
    if moved and len(blocks) > 1:
        lines += [
            text_table(
                [("block", "tensors", "entries", "largest"), *map(_block, *zip(*blocks.items(), strict=True))],
                right=[1, 2, 3],
            ),
            "",
        ]
    shown = list(moved) if args.all else list(moved)[:_TENSORS]
    if moved:
        table = [("tensor", "entries", "rows", "largest"), *(_row(name, moved[name]) for name in shown)]
        lines += [text_table(table, right=[1, 2, 3]), ""]
    if len(shown) < len(moved):
        lines += [f"and {len(moved) - len(shown):,} more tensors: --all lists them", ""]
    if args.rows:
        lines += _row_lines(moved, args)
    lines += [f"{name}: {a} in A, {b} in B" for name, (a, b) in found.retyped.items()]
    lines += [
        f"{name}: only in {which}"
        for which, names in (("A", found.only_in_a), ("B", found.only_in_b))
        for name in names
    ]
    lines += found.ties
    same = sum(not tensor.entries for tensor in found.tensors.values())
    if found.is_same:
        return [*lines, f"the same: {same:,} tensors, every bit"]
    return [*lines, f"{len(found.changed):,} differ, {same:,} tensors are the same, every bit"]


def block_of(name: str) -> str:
    """Return the block of a model that a tensor belongs to: its name up to the first number, else its first part.

    Example:
        >>> block_of("model.layers.3.mlp.up_proj.weight"), block_of("embed.weight"), block_of("scale")
        ('model.layers.3', 'embed', 'scale')
    """
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if number is not None:
        return ".".join(parts[: number + 1])
    return ".".join(parts[:-1]) or name


def _block(name: str, tensors: list[TensorDifference]) -> tuple[str, ...]:
    moved = [tensor for tensor in tensors if tensor.entries]
    entries, numel = sum(tensor.entries for tensor in tensors), sum(tensor.numel for tensor in tensors)
    largest = max((tensor.largest for tensor in moved), default=0.0, key=lambda x: (x != x, x))
    return name, f"{len(moved)} of {len(tensors)}", f"{entries:,} of {numel:,}", f"{largest:.3g}" if moved else ""


def _row(name: str, tensor: TensorDifference) -> tuple[str, ...]:
    entries, rows = f"{tensor.entries:,} of {tensor.numel:,}", f"{tensor.rows:,} of {tensor.num_rows:,}"
    return name, entries, rows, f"{tensor.largest:.3g}"


def _row_lines(moved: dict[str, TensorDifference], args: argparse.Namespace) -> list[str]:
    from frostline.changes.row_names import read_row_names
    from frostline.printing import listed

    found = (read_row_names(Path(each.split("+")[0])) for each in (args.b, args.a))
    names = next((each for each in found if each), [])
    lines = []
    for name, tensor in moved.items():
        texts = names if len(names) == tensor.num_rows else []
        rows = [f"{row} {texts[row]!r}" if texts else str(row) for row in tensor.row_ids]
        lines.append(f"{name}: rows {listed(rows, _ROWS)}")
    return [*lines, ""] if lines else []
