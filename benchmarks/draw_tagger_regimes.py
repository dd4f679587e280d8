"""Draw what `tagger_regimes.py --log` kept: what learning brings above a table that stands still, a point a seed.

A point is the F1 of a run less that of the run with the same seed in which nothing of the table learns: these two begin
with the same weights and read the same batches. The mean F1 of nothing learning stands under each place. One column for
each TRAIN and what it was judged on, dev or FAR; above, parts of TRAIN under all vectors; below, fewer vectors, where
the runs have them. A line joins the means. The places along a panel are evenly spaced.

Run:    python benchmarks/draw_tagger_regimes.py [RUNS.jsonl PICTURE.png] [--epochs N]
Without names it draws the runs that are published, into docs/. Runs of another number of epochs are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
FLOOR = "none"
STYLES = {  # Okabe and Ito's colours, a mark of its own for each, and how far its points stand beside their place
    "missing": ("missing words learn", "#0072B2", "o", -0.06),
    "all": ("everything learns", "#D55E00", "^", 0.06),
}
INK = "#22303A"

Run = dict[str, Any]


def panel(axes: Axes, runs: list[Run], score: str, along: str) -> None:
    """Draw `score` of `runs` above that of FLOOR against `along`, of which None, the whole, comes last."""
    places = sorted({run[along] for run in runs}, key=lambda value: (value is None, value))
    found = {(run[along], run["regime"], run["seed"]): run[score] for run in runs}
    floors = [{key[2]: f1 for key, f1 in found.items() if key[:2] == (place, FLOOR)} for place in places]
    axes.axhline(0, color="#7A858E", linewidth=1.6, label="nothing learns")
    for regime, (name, colour, mark, beside) in STYLES.items():
        gains = [
            [found[place, regime, seed] - f1 for seed, f1 in floor.items() if (place, regime, seed) in found]
            for place, floor in zip(places, floors, strict=True)
        ]
        means = [(at, statistics.mean(values)) for at, values in enumerate(gains) if values]
        points = [(at + beside, value) for at, values in enumerate(gains) for value in values]
        axes.plot(*zip(*means, strict=True), color=colour, linewidth=1.6, label=name)
        axes.plot(*zip(*points, strict=True), mark, color=colour, markersize=5, alpha=0.7, markeredgewidth=0)
    names = ["all" if place is None else f"{place:,}" for place in places]
    levels = [statistics.mean(floor.values()) for floor in floors]
    axes.set_xticks(range(len(places)), [f"{name}\n({f1:.1f})" for name, f1 in zip(names, levels, strict=True)])
    axes.set_xlim(-0.4, len(places) - 0.6)
    axes.grid(axis="y", color="#E4E8EB", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, colors=INK)


def draw(runs: list[Run], path: Path) -> None:
    """Write the picture of `runs`, a PNG; what a column has no runs for stays empty."""
    cut = {(run["train"], run["part"]) for run in runs if run["keep"] is not None}
    rows = {
        "sentences": ("sentences of training", [run for run in runs if run["keep"] is None]),
        "keep": ("vectors, the most frequent words", [run for run in runs if (run["train"], run["part"]) in cut]),
    }
    columns = [
        (train, score)
        for train in dict.fromkeys(run["train"] for run in runs)
        for score in ("f1", "far")
        if any(run["train"] == train and run[score] is not None for run in runs)
    ]
    figure = Figure(figsize=(3.3 * len(columns) + 0.4, 6.2), dpi=110, facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharey=True)
    for axes_row, (along, (words, some)) in zip(grid, rows.items(), strict=True):
        for axes, (train, score) in zip(axes_row, columns, strict=True):
            own = [run for run in some if run["train"] == train and run[score] is not None]
            if len({run[along] for run in own}) < 2:
                axes.set_axis_off()
                continue
            panel(axes, own, score, along)
            where = "dev" if score == "f1" else "another kind"
            axes.set_title(f"{Path(train).with_suffix('')}, judged on {where}", loc="left", fontsize=10, color=INK)
            axes.set_xlabel(words, fontsize=9, color=INK)
            axes.tick_params(labelleft=True)
    figure.supylabel("points of F1 above nothing learns (whose F1 is in brackets)", fontsize=9, color=INK)
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=10)
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, format="png")
    unfinished.replace(path)


def main() -> None:
    """Read the runs, draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", nargs="?", type=Path, default=HERE / "tagger_regimes.jsonl")
    parser.add_argument("picture", nargs="?", type=Path, default=HERE.parent / "docs" / "tagger-regimes.png")
    parser.add_argument("--epochs", type=int, default=16)
    arguments = parser.parse_args()
    runs = [json.loads(line) for line in arguments.runs.open(encoding="utf-8")]
    draw([run for run in runs if run["epochs"] == arguments.epochs and not run["whole"]], arguments.picture)


if __name__ == "__main__":
    main()
