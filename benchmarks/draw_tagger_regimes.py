"""Draw what `tagger_regimes.py --log` kept: F1 against sentences of training and against vectors, a point a seed.

One column for each TRAIN and what it was judged on, dev or FAR; above, parts of TRAIN under all vectors; below, the
whole of it under fewer vectors. A line joins the means. The places along a panel are evenly spaced.

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
STYLES = {  # Okabe and Ito's colours; a mark of its own for each, and where it stands beside its place
    "none": ("nothing learns", "#7A858E", "s", -0.12),
    "missing": ("missing words learn", "#0072B2", "o", 0.0),
    "all": ("everything learns", "#D55E00", "^", 0.12),
}
INK = "#22303A"

Run = dict[str, Any]


def panel(axes: Axes, runs: list[Run], score: str, along: str) -> None:
    """Draw `score` of `runs` against `along`, of which None, the whole, comes last."""
    places = sorted({run[along] for run in runs}, key=lambda value: (value is None, value))
    for regime, (name, colour, mark, beside) in STYLES.items():
        found = [[run[score] for run in runs if run[along] == place and run["regime"] == regime] for place in places]
        means = [(at + beside, statistics.mean(values)) for at, values in enumerate(found) if values]
        points = [(at + beside, value) for at, values in enumerate(found) for value in values]
        axes.plot(*zip(*means, strict=True), color=colour, linewidth=1.6, label=name)
        axes.plot(*zip(*points, strict=True), mark, color=colour, markersize=4, alpha=0.75, markeredgewidth=0)
    axes.set_xticks(range(len(places)), ["all" if place is None else f"{place:,}" for place in places])
    axes.grid(axis="y", color="#E4E8EB", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, colors=INK)


def draw(runs: list[Run], path: Path) -> None:
    """Write the picture of `runs`, a PNG; what a column has no runs for stays empty."""
    rows = {
        "sentences": ("sentences of training", [run for run in runs if run["keep"] is None]),
        "keep": ("vectors, the most frequent words", [run for run in runs if run["part"] == 1]),
    }
    columns = [
        (train, score)
        for train in dict.fromkeys(run["train"] for run in runs)
        for score in ("f1", "far")
        if any(run["train"] == train and run[score] is not None for run in runs)
    ]
    figure = Figure(figsize=(3.3 * len(columns) + 0.4, 6.2), dpi=110, facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes_row, (along, (words, some)) in zip(grid, rows.items(), strict=True):
        for axes, (train, score) in zip(axes_row, columns, strict=True):
            own = [run for run in some if run["train"] == train and run[score] is not None]
            if len({run[along] for run in own}) < 2:
                axes.set_axis_off()
                continue
            panel(axes, own, score, along)
            where = "dev" if score == "f1" else "sentences of another kind"
            axes.set_title(f"{Path(train).with_suffix('')}: F1 on {where}", loc="left", fontsize=10, color=INK)
            axes.set_xlabel(words, fontsize=9, color=INK)
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=len(STYLES), frameon=False, fontsize=10)
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
