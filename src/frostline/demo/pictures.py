"""Two pictures of the demo: the curves, and a map of frozen words (dots) and learned words (arrows).

Letters used for shapes in this file:
    F  frozen words shown          L  learned words shown

The colours are Okabe and Ito's, distinct for people with any colour vision. pyplot is not used, so no window system is
needed and no global state changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from frostline.errors import MissingExtraError
from frostline.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Points = npt.NDArray[np.float32]
Point = tuple[float, float]
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#9AA3AB", "#22303A"


class Curve(NamedTuple):
    """A training run: its loss and its F1 on dev (0 to 1) after each epoch."""

    loss: Sequence[float]
    dev_f1: Sequence[float]


class Arrow(NamedTuple):
    """A learned word: its position before and after training, and whether most of its occurrences are code."""

    word: str
    start: Point
    end: Point
    is_code: bool


def draw_curves(path: Path, runs: Mapping[str, Curve], title: str) -> None:
    """Draw the loss and the dev F1 of each run side by side, 1200 x 480 pixels, a PNG at `path`.

    Args:
        path: File to write.
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


def draw_map(path: Path, frozen: Points, names: Mapping[str, int], arrows: Sequence[Arrow], title: str) -> None:
    """Draw the map, 1200 x 700 pixels, a PNG at `path`: frozen words are dots, learned words are arrows.

    Args:
        path: File to write.
        frozen: Positions of frozen words, shape (F, 2).
        names: Frozen words to label if there is space, and their row in `frozen`; the most important first.
        arrows: The learned words, the most important first; those without space for their label are left out.
        title: What the picture shows, in one sentence.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure(12, 7)
    axes = figure.add_axes((0.012, 0.075, 0.976, 0.855))
    ends = np.array([point for arrow in arrows for point in (arrow.start, arrow.end)])
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
        ("o", GREY, "frozen: has a pretrained vector"),
        (">", BLUE, "learned, mostly code in the training text"),
        (">", ORANGE, "learned, mostly prose in the training text"),
    ):
        axes.plot([], [], marker, color=colour, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, frameon=False, fontsize=11, handletextpad=0.2)
    figure.suptitle(title, x=0.012, y=0.975, ha="left", fontsize=13.5, fontweight="bold", color=INK)
    labels = _Labels(axes)
    for arrow in arrows:
        colour = BLUE if arrow.is_code else ORANGE
        if labels.add(arrow.word, arrow.start, arrow.end, colour, 11):
            style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "alpha": 0.85, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", xy=arrow.end, xytext=arrow.start, arrowprops=style, zorder=3)
            axes.plot(*arrow.start, "o", markersize=4, markerfacecolor="white", markeredgecolor=colour, zorder=3)
    for word, row in names.items():
        point = (float(frozen[row, 0]), float(frozen[row, 1]))
        labels.add(word, point, point, "#66717A", 9)
    _save(figure, path)


class _Labels:
    """The labels of a map, which overlap neither each other nor an arrow."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._inside = axes.get_window_extent().padded(-4)
        self._boxes = [text.get_window_extent() for text in axes.texts]
        self._arrows = np.empty((0, 2))  # points along the arrows, in pixels

    def add(self, word: str, start: Point, end: Point, colour: str, size: float) -> bool:
        """Write a word next to `end`, preferably on the side away from `start`; return False if it does not fit.

        Later labels are kept off the arrow from `start` to `end`.
        """
        from matplotlib.patheffects import withStroke

        arrow = self._axes.transData.transform(np.linspace(start, end, 60))
        if any(_touches(box, arrow) for box in self._boxes):
            return False
        arrows, out = np.concatenate([self._arrows, arrow]), 1 if end[0] >= start[0] else -1
        for x, y in ((7 * out, 0), (5 * out, 8), (5 * out, -8), (0, 10), (0, -10), (-7 * out, 0)):
            text = self._axes.annotate(word, end, (x, y), textcoords="offset points", va="center", fontsize=size)
            text.set(ha="center" if x == 0 else "left" if x > 0 else "right", color=colour, parse_math=False, zorder=4)
            box = text.get_window_extent()
            inside = self._inside.contains(box.x0, box.y0) and self._inside.contains(box.x1, box.y1)
            if inside and not _touches(box, arrows) and not any(box.overlaps(other) for other in self._boxes):
                text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
                self._boxes.append(box.padded(4))
                if start != end:
                    self._arrows = arrows
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
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png")
