"""How many cases were drawn, for each choice of each axis: so that a promise of thousands can be seen to be kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import fields

from .cases import Case

axes: dict[str, Counter[str]] = defaultdict(Counter)
totals: Counter[str] = Counter()

_SEEDS = ("values",)


def count(case: Case, facts: dict[str, int]) -> None:
    """Count a case that held, and what was seen in it."""
    totals["cases"] += 1
    totals["compiled"] += case.call in ("aot_eager", "inductor")
    totals["through inductor"] += case.call == "inductor"
    totals.update(facts)
    for field in fields(case):
        value = getattr(case, field.name)
        if field.name not in _SEEDS:
            axes[field.name].update(value if isinstance(value, tuple) else [str(value)])


def table() -> str:
    """The counts, one axis a line."""
    lines = [", ".join(f"{count:,} {what}" for what, count in totals.items())]
    for axis, values in axes.items():
        lines.append(f"{axis}: " + ", ".join(f"{value} {count:,}" for value, count in sorted(values.items())))
    return "\n".join(lines)
