"""Draw the log of `tagger_regimes.py`: what learning gains over a frozen table, a point for each seed.

A point is the F1 of a run minus that of the run with the same seed and a frozen table: the two begin with the same
weights and read the same batches. The mean F1 of the frozen table is in each tick label. For each TRAIN there is a
panel of its parts, scored on dev, another for FAR, and as many for fewer vectors, where the log has them. A line joins
the means. The ticks are evenly spaced.

Run:    python benchmarks/draw_tagger_regimes.py [RUNS.jsonl PICTURE.png] [--epochs N]
Without arguments it draws the published runs into docs/. Runs with another number of epochs are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from frostline.files import replacing

HERE = Path(__file__).parent
FLOOR = "none"
SCORES = {"f1": "dev", "far": "another kind"}
WIDE = 4  # panels side by side
STYLES = {  # Okabe and Ito's colours, a marker for each, and how far its points are from their tick
    "missing": ("missing words learn", "#0072B2", "o", -0.06),
    "all": ("everything learns", "#D55E00", "^", 0.06),
}
INK = "#22303A"

Run = dict[str, Any]


def panel(axes: Axes, runs: list[Run], score: str, along: str) -> None:
    """Draw `score` of `runs` minus that of FLOOR against `along`, whose None, all, comes last."""
    ticks = sorted({run[along] for run in runs}, key=lambda value: (value is None, value))
    found = {(run[along], run["regime"], run["seed"]): run[score] for run in runs}
    floors = [{key[2]: f1 for key, f1 in found.items() if key[:2] == (tick, FLOOR)} for tick in ticks]
    axes.axhline(0, color="#7A858E", linewidth=1.6, label="nothing learns")
    for regime, (name, colour, marker, offset) in STYLES.items():
        gains = [
            [found[tick, regime, seed] - f1 for seed, f1 in floor.items() if (tick, regime, seed) in found]
            for tick, floor in zip(ticks, floors, strict=True)
        ]
        means = [(at, statistics.mean(values)) for at, values in enumerate(gains) if values]
        points = [(at + offset, value) for at, values in enumerate(gains) for value in values]
        axes.plot(*zip(*means, strict=True), color=colour, linewidth=1.6)
        axes.plot(
            *zip(*points, strict=True), marker, color=colour, label=name, alpha=0.7, markersize=5, markeredgewidth=0
        )
    names = ["all" if tick is None else f"{tick:,}" for tick in ticks]
    levels = [statistics.mean(floor.values()) for floor in floors]
    axes.set_xticks(range(len(ticks)), [f"{name}\n({f1:.1f})" for name, f1 in zip(names, levels, strict=True)])
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.grid(axis="y", color="#E4E8EB", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, colors=INK)


def panels(runs: list[Run]) -> Iterator[tuple[list[Run], str, str, str, str]]:
    """Yield for each panel its runs, their score, what they differ in, a title and a label of the axis."""
    for train in dict.fromkeys(run["train"] for run in runs):
        own = [run for run in runs if run["train"] == train]
        cut = {run["part"] for run in own if run["keep"] is not None}
        for along, words, some in [
            ("sentences", "sentences of training", [run for run in own if run["keep"] is None]),
            *(("keep", "first vectors, {:,} sentences", [run for run in own if run["part"] == part]) for part in cut),
        ]:
            for score, where in SCORES.items():
                scored = [run for run in some if run[score] is not None]
                if len({run[along] for run in scored}) > 1:
                    title = f"{Path(train).with_suffix('')}, F1 on {where}"
                    yield scored, score, along, title, words.format(scored[0]["sentences"])


def draw(runs: list[Run], path: Path) -> None:
    """Write the picture of `runs`, a PNG."""
    found = list(panels(runs))
    rows = math.ceil(len(found) / WIDE)
    figure = Figure(figsize=(12.4, 0.5 + 3 * rows), dpi=110, facecolor="white", layout="constrained")
    grid = figure.subplots(rows, WIDE, squeeze=False, sharey="row").flat
    for axes, (some, score, along, title, words) in zip(grid, found, strict=False):
        panel(axes, some, score, along)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel(words, fontsize=9, color=INK)
    for axes in list(grid)[len(found) :]:
        axes.set_axis_off()
    figure.supylabel("points of F1 above nothing learns (whose F1 is in brackets)", fontsize=9, color=INK)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=10)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png")


def main() -> None:
    """Read the runs and draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", nargs="?", type=Path, default=HERE / "tagger_regimes.jsonl")
    parser.add_argument("picture", nargs="?", type=Path, default=HERE.parent / "docs" / "tagger-regimes.png")
    parser.add_argument("--epochs", type=int, default=16)
    arguments = parser.parse_args()
    runs = [json.loads(line) for line in arguments.runs.open(encoding="utf-8")]
    draw([run for run in runs if run["epochs"] == arguments.epochs and not run["whole"]], arguments.picture)


if __name__ == "__main__":
    main()
