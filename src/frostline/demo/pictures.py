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
        travellers: The learned words, the most important first; those without room for their names are left out.
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
    note = "from left to right: the direction in which the learned words moved most"
    axes.annotate(
        note, (0.99, 0.012), xycoords="axes fraction", ha="right", fontsize=9.5, color="#66717A", style="italic"
    )
    for marker, colour, label in (
        ("o", GREY, "frozen: has a pretrained vector, stands still"),
        (">", BLUE, "learned, mostly code in the training text"),
        (">", ORANGE, "learned, mostly prose in the training text"),
    ):
        axes.plot([], [], marker, color=colour, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, frameon=False, fontsize=11, handletextpad=0.2)
    figure.suptitle(title, x=0.012, y=0.975, ha="left", fontsize=13.5, fontweight="bold", color=INK)
    room = _Room(axes)
    for traveller in travellers:
        colour = BLUE if traveller.code else ORANGE
        if room.name(traveller.word, traveller.start, traveller.end, colour, 11):
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "alpha": 0.85, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", xy=traveller.end, xytext=traveller.start, arrowprops=arrow, zorder=3)
            axes.plot(*traveller.start, "o", markersize=4, markerfacecolor="white", markeredgecolor=colour, zorder=3)
    for word, row in names.items():
        place = (float(frozen[row, 0]), float(frozen[row, 1]))
        room.name(word, place, place, "#66717A", 9)
    _save(figure, path)


class _Room:
    """The room that is left on a map for words and arrows."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._inside = axes.get_window_extent().padded(-4)
        self._boxes = [text.get_window_extent() for text in axes.texts]
        self._ways = np.empty((0, 2))

    def name(self, word: str, origin: Place, place: Place, colour: str, size: float) -> bool:
        """Write a word beside `place`, on the side away from `origin` if it can; False where it would cover something.

        The way from origin to place is kept free of words from then on.
        """
        from matplotlib.patheffects import withStroke

        way = self._axes.transData.transform(np.linspace(origin, place, 60))
        if any(_touches(box, way) for box in self._boxes):
            return False
        ways, out = np.concatenate([self._ways, way]), 1 if place[0] >= origin[0] else -1
        for x, y in ((7 * out, 0), (5 * out, 8), (5 * out, -8), (0, 10), (0, -10), (-7 * out, 0)):
            text = self._axes.annotate(word, place, (x, y), textcoords="offset points", va="center", fontsize=size)
            text.set(ha="center" if x == 0 else "left" if x > 0 else "right", color=colour, parse_math=False, zorder=4)
            box = text.get_window_extent()
            inside = self._inside.contains(box.x0, box.y0) and self._inside.contains(box.x1, box.y1)
            if inside and not _touches(box, ways) and not any(box.overlaps(other) for other in self._boxes):
                text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
                self._boxes.append(box.padded(4))
                if origin != place:
                    self._ways = ways
                return True
            text.remove()
        return False


def _touches(box: Bbox, points: npt.NDArray[np.float64]) -> bool:
    return bool(((points > box.min) & (points < box.max)).all(axis=1).any())


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
