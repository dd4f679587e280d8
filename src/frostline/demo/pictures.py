"""Two pictures of a training run: the curves, and the map on which frozen words stand still and learned words travel.

Letters used for shapes in this file:
    F  frozen words shown          L  learned words shown

Colours are Okabe and Ito's, which people with any colour vision can tell apart. Nothing of pyplot is used, so no window
system is needed and no global state is touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from frostline.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Points = npt.NDArray[np.float32]
Place = tuple[float, float]
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#9AA3AB", "#22303A"


class Curve(NamedTuple):
    """One training run: its loss and its F1 on dev (0 to 1) after each epoch."""

    loss: Sequence[float]
    dev_f1: Sequence[float]


class Traveller(NamedTuple):
    """A learned word: where it began, where it ended, and whether most of its occurrences are code."""

    word: str
    start: Place
    end: Place
    code: bool


def curves(path: Path, runs: Mapping[str, Curve], title: str) -> None:
    """Draw the loss and the dev F1 of each run side by side, 1200 x 480 pixels, a PNG at `path`.

    Args:
        path: File to write; written beside it first, then renamed.
        runs: Name and curve of up to three runs, in the order in which colours are given.
        title: What the picture shows, in one sentence.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure(12, 4.8)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.055, right=0.985, bottom=0.12, top=0.83, wspace=0.13)
    for (name, curve), colour, dash in zip(runs.items(), (BLUE, GREEN, ORANGE), ("-", "--", "-."), strict=False):
        epochs = range(1, len(curve.loss) + 1)
        style = {"color": colour, "linestyle": dash, "linewidth": 2.2, "label": name}
        left.plot(epochs, curve.loss, **style)
        right.plot(epochs, [100 * f1 for f1 in curve.dev_f1], **style)
    left.set_title("training loss, mean of a token", loc="left", fontsize=11, color=INK)
    right.set_title("entity F1 on dev, %", loc="left", fontsize=11, color=INK)
    left.legend(frameon=False, loc="upper right")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#E6E9EC")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.012, y=0.965, ha="left", fontsize=14, fontweight="bold", color=INK)
    _save(figure, path)


def travel(path: Path, frozen: Points, names: Mapping[str, int], travellers: Sequence[Traveller], title: str) -> None:
    """Draw the map, 1200 x 700 pixels, a PNG at `path`: frozen words are dots, learned words arrows to where they end.

    Args:
        path: File to write; written beside it first, then renamed.
        frozen: Places of frozen words, shape (F, 2).
        names: Frozen words to name if there is room, and their row in `frozen`; the first ones first.
        travellers: The learned words, the most important first: a name is left out where there is no room.
        title: What the picture shows, in one sentence.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure(12, 7)
    axes = figure.add_axes((0.012, 0.075, 0.976, 0.855))
    ends = np.array([place for t in travellers for place in (t.start, t.end)])
    low, high = ends.min(axis=0), ends.max(axis=0)
    axes.set_xlim(low[0] - 0.16 * (high - low)[0], high[0] + 0.16 * (high - low)[0])
    axes.set_ylim(low[1] - 0.06 * (high - low)[1], high[1] + 0.06 * (high - low)[1])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#D5DADE")
    axes.scatter(frozen[:, 0], frozen[:, 1], s=9, color=GREY, alpha=0.4, linewidths=0, zorder=1)
    for traveller in travellers:
        colour = BLUE if traveller.code else ORANGE
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "alpha": 0.85, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=traveller.end, xytext=traveller.start, arrowprops=arrow, zorder=3)
        axes.plot(*traveller.start, "o", markersize=4, markerfacecolor="white", markeredgecolor=colour, zorder=3)
    for marker, colour, label in (
        ("o", GREY, "frozen: has a pretrained vector, stands still"),
        (">", BLUE, "learned, mostly code in the training text"),
        (">", ORANGE, "learned, mostly prose in the training text"),
    ):
        axes.plot([], [], marker, color=colour, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, frameon=False, fontsize=11, handletextpad=0.2)
    figure.suptitle(title, x=0.012, y=0.975, ha="left", fontsize=14, fontweight="bold", color=INK)
    wanted = [(t.word, t.end, t.start, BLUE if t.code else ORANGE, 11.0) for t in travellers]
    places = {word: (float(frozen[row, 0]), float(frozen[row, 1])) for word, row in names.items()}
    wanted += [(word, place, place, "#66717A", 9.0) for word, place in places.items()]
    _name(axes, wanted, ends)
    _save(figure, path)


def _name(axes: Axes, wanted: Sequence[tuple[str, Place, Place, str, float]], avoid: Points) -> None:
    """Write words where they overlap nothing: each is (word, place, the place it came from, colour, size).

    A word stands beside its place, if it can on the side away from its origin; without room it is left out.
    """
    dots, inside = axes.transData.transform(avoid), axes.get_window_extent().padded(-4)
    boxes: list[Bbox] = []
    for word, place, origin, colour, size in wanted:
        out = 1 if place[0] >= origin[0] else -1
        for x, y in ((7 * out, 0), (5 * out, 8), (5 * out, -8), (0, 10), (0, -10), (-7 * out, 0)):
            text = axes.annotate(
                word, place, (x, y), textcoords="offset points", va="center", fontsize=size, color=colour
            )
            text.set(ha="center" if x == 0 else "left" if x > 0 else "right", parse_math=False, zorder=4)
            box = text.get_window_extent()
            free = not any(box.overlaps(other) for other in boxes) and not any(box.contains(*dot) for dot in dots)
            if free and inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1):
                boxes.append(box.padded(3))
                break
            text.remove()


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("pictures need matplotlib. Install it: pip install 'frostline[demo]'") from None
    return Figure(figsize=(width, height), dpi=100, facecolor="white")


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
