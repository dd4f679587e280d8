"""Two thousand random training runs: frozen values keep every bit, learned ones equal the oracle's."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings

from . import cases as axes
from . import counts
from .cases import CALLS, CASES, DTYPES, SEED, Case, cases
from .modules import KINDS
from .optimizers import FAMILIES
from .run import run

# Compiling takes seconds: in a soak at most one case in a hundred.
COMPILED = {
    "aot_eager": min(math.ceil(CASES * 0.024), max(48, CASES // 160)),
    "inductor": min(math.ceil(CASES * 0.012), max(24, CASES // 400)),
}
COMPILED_STEPS = max(2, CASES // 2000)
KIND = math.ceil((CASES - sum(COMPILED.values()) - COMPILED_STEPS) / len(KINDS))
WHOLE = [name for name, kind in KINDS.items() if kind.traced and not kind.sparse]

pytestmark = pytest.mark.filterwarnings("ignore:.*is dense, so all its")  # of row optimizers


DENSE = [name for name, kind in KINDS.items() if not kind.sparse]
NEW = {
    "toggle": axes.TOGGLES,
    "loss": axes.LOSSES,
    "hook": axes.HOOKS,
    "held": axes.HELD,
    "write": axes.WRITES,
    "reading": axes.READINGS,
    "between": axes.LOADED,
    "shared": ("True",),
    "given": ("model",),
    "kernel": ("fused", "foreach"),
}


def draw(kinds: Sequence[str], calls: Sequence[str], count: int, compiled_step: bool = False) -> None:
    """Draw `count` cases and carry them out."""

    @seed(SEED + zlib.crc32("".join([*kinds, *calls]).encode()))  # others for each kind
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(kinds, calls, compiled_step))
    def carry_out(case: Case) -> None:
        note(repr(case))
        counts.count(case, run(case))

    before = counts.totals["cases"]
    carry_out()
    assert counts.totals["cases"] - before >= count


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_values_keep_every_bit_and_learned_ones_are_the_oracles(kind: str) -> None:
    draw([kind], CALLS, KIND)


@pytest.mark.parametrize("backend", COMPILED)
def test_the_same_holds_when_the_module_is_compiled(backend: str) -> None:
    draw(WHOLE, [backend], COMPILED[backend])


def test_the_same_holds_when_the_optimizers_step_is_compiled() -> None:
    draw(DENSE, ["plain"], COMPILED_STEPS, compiled_step=True)


def test_as_many_cases_were_drawn_as_promised() -> None:
    if counts.totals["cases"] < CASES / 2:
        pytest.skip("only some of the cases were asked for")
    assert counts.totals["cases"] >= CASES
    assert all(counts.axes["optimizer"][name] >= CASES // 200 for name in FAMILIES)
    assert all(counts.axes["dtype"][name] >= CASES // 8 for name in DTYPES)
    assert all(counts.axes[axis][value] >= CASES // 200 for axis, values in NEW.items() for value in values)
    assert counts.totals["compiled"] >= 60
    assert counts.totals["through inductor"] >= 20
    assert counts.totals["frozen numbers compared"] > 10 * CASES
    assert counts.totals["learned numbers that moved"] > 10 * CASES
