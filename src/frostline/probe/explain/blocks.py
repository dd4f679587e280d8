"""Names of tensors, made short: what is the same in every block of a model is one name, `layers.0-31.attn.weight`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_Part = str | frozenset[int]
_MOST_RANGES = 4


@dataclass(frozen=True)
class Block:
    """Tensors under one name.

    Attributes:
        label: The name: `layers.0-31.attn.weight`, or `encoder.*` for all that the model has under `encoder`.
        count: How many tensors it stands for.
    """

    label: str
    count: int


def blocks_of(names: Sequence[str], every: Iterable[str], most: int) -> list[Block]:
    """Return the finest blocks of `names` that are not more than `most`; the coarsest if no blocks are so few.

    Args:
        names: Names of tensors.
        every: The names of all tensors of the model: `encoder.*` stands for all of them under `encoder`.
        most: How many blocks there should be.

    Example:
        >>> names = [f"layers.{n}.attn.{part}" for n in range(32) for part in ("q.weight", "q.bias", "k.weight")]
        >>> [(block.label, block.count) for block in blocks_of(names, [*names, "head.weight"], most=3)]
        [('layers.0-31.attn.q.*', 64), ('layers.0-31.attn.k.weight', 32)]
    """
    paths = [tuple(name.split(".")) for name in names]
    there, here = _under(tuple(name.split(".")) for name in every), _under(paths)
    for steps in range(1, max(map(len, paths), default=1) + 1):
        found = _merged([_climbed(path, steps, there, here) for path in paths])
        if len(found) <= most:
            break
    return found


def _under(paths: Iterable[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    """Return how many names lie under each prefix."""
    return Counter(path[:end] for path in paths for end in range(len(path)))


def _climbed(
    path: tuple[str, ...], steps: int, there: Counter[tuple[str, ...]], here: Counter[tuple[str, ...]]
) -> tuple[str, ...]:
    """Return the way to the highest module, at most so many steps up, all of whose tensors are among the names."""
    best = path
    for end in range(len(path) - 1, max(len(path) - steps, 0) - 1, -1):
        if here[path[:end]] < there[path[:end]]:
            break
        if here[path[:end]] > 1:
            best = (*path[:end], "*")
    return best


def _merged(paths: Iterable[tuple[str, ...]]) -> list[Block]:
    """Return the blocks in which paths lie that differ in numbers alone."""
    counts: dict[tuple[_Part, ...], int] = {}
    for path in paths:
        parts: tuple[_Part, ...] = tuple(frozenset([int(part)]) if part.isdecimal() else part for part in path)
        counts[parts] = counts.get(parts, 0) + 1
    for at in reversed(range(max(map(len, counts), default=0))):
        united: dict[tuple[object, ...], tuple[tuple[_Part, ...], int]] = {}
        for parts, count in counts.items():
            number = parts[at] if at < len(parts) else ""
            if isinstance(number, str):
                key: tuple[object, ...] = (parts,)
            else:
                key = (parts[:at], parts[at + 1 :])
                before = united.get(key)
                if before is not None:
                    other = before[0][at]
                    assert not isinstance(other, str)
                    parts, count = (*parts[:at], number | other, *parts[at + 1 :]), count + before[1]
            united[key] = parts, count
        counts = dict(united.values())
    return [Block(".".join(map(_written, parts)), count) for parts, count in counts.items()]


def _written(part: _Part) -> str:
    if isinstance(part, str):
        return part
    numbers = sorted(part)
    starts = [numbers[0], *(after for before, after in pairwise(numbers) if after > before + 1)]
    ends = [*(before for before, after in pairwise(numbers) if after > before + 1), numbers[-1]]
    ranges = [f"{start}-{end}" if end > start else str(start) for start, end in zip(starts, ends, strict=True)]
    return ",".join([*ranges[:_MOST_RANGES], *(["..."] if len(ranges) > _MOST_RANGES else [])])
