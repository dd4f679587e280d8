"""The charts of a run as plotly figures: curves, what was recorded, movement, and maps of rows that moved.

Letters used for shapes in this file:
    P  points of a trajectory         D  width of a row
    R  rows that moved                N  rows on a map

Figures carry no colours of background or text: the page sets them, light or dark. Words come from the run and stand in
plotly's own small HTML, so they are escaped. Colours are near Okabe and Ito's, which people with any colour vision can
tell apart, and can be seen on light and on dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from frostline.errors import MissingExtraError
from frostline.record import Movement, Recorded
from frostline.report.contents import Curve

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Floats = npt.NDArray[np.float64]
BLUE, ORANGE, GREEN, GREY = "#2F86C4", "#D55E00", "#009E73", "#8A949C"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7A5C3E")
_BARS, _LINES, _POINTS = 25, 40, 2000  # rows with a bar, lines of one chart, points of a curve
_MAPPED, _NAMED = 150, 40  # rows on a map, words written on it


def curves(lines: Sequence[Curve]) -> Figure:
    """One quantity over epochs or steps, a line for each run; of more than 2,000 points evenly spread ones."""
    figure = _figure(lines[0].quantity)
    for line, colour in zip(lines, _colours(len(lines)), strict=True):
        every = -(-len(line.x) // _POINTS)
        figure.add_scatter(
            x=line.x[::-every][::-1], y=line.y[::-every][::-1], mode="lines" if len(line.x) > 1 else "markers",
            name=_text(line.run or line.quantity), line={"color": colour, "width": 2},
            hovertemplate=f"{line.axis} %{{x}}: %{{y:.4g}}",
        )  # fmt: skip
    figure.update_layout(showlegend=len(lines) > 1, xaxis_title=lines[0].axis)
    if max(line.x[-1] - line.x[0] for line in lines) <= 10:
        figure.update_xaxes(dtick=1)  # there is no half an epoch
    return figure


def entries(name: str, one: Recorded) -> Figure:
    """The entries of a small tensor over steps; of more than 40, those that moved furthest."""
    values = _drawable(one.values.flatten(1))  # (P, n)
    places = np.argsort(-_moved(values), kind="stable")[:_LINES]
    left_out = values.shape[1] - len(places)
    figure = _figure(
        name + (f": the {len(places)} entries that moved furthest of {values.shape[1]:,}" if left_out else "")
    )
    for place, colour in zip(sorted(places.tolist()), _colours(len(places)), strict=True):
        index = ", ".join(str(int(part)) for part in np.unravel_index(place, one.values.shape[1:]))
        figure.add_scatter(
            x=one.steps, y=values[:, place], name=f"[{index}]", mode="lines", line={"color": colour, "width": 2},
            hovertemplate="step %{x}: %{y:.6g}",
        )  # fmt: skip
    figure.update_layout(showlegend=1 < len(places) <= 12, xaxis_title="step")
    return figure


def distance(one: Recorded) -> Floats:
    """How far each recorded row is from where it began, at each point, shape (P, R)."""
    values = _rows(one)  # (P, R, D)
    found: Floats = np.linalg.norm(values - values[:1], axis=2)
    return found


def distances(name: str, one: Recorded) -> Figure:
    """How far each recorded row is from where it began, over steps; of more than 40, those that went furthest."""
    far = distance(one)
    furthest = np.argsort(-far[-1], kind="stable")[:_LINES]
    figure = _figure(f"{name}: distance from the start")
    words = one.words or []
    for row, colour in zip(furthest.tolist(), _colours(len(furthest)), strict=True):
        figure.add_scatter(
            x=one.steps, y=far[:, row], name=_text(words[row]), mode="lines", line={"color": colour, "width": 2},
            hovertemplate="step %{x}: %{y:.4g}",
        )  # fmt: skip
    figure.update_layout(showlegend=len(furthest) <= 12, xaxis_title="step")
    return figure


def furthest(words: Sequence[str], far: Floats, name: str = "") -> Figure:
    """A bar for each of the 25 words that moved furthest, the furthest on top; `far` has shape (R,)."""
    order = np.argsort(-far, kind="stable")[:_BARS][::-1]
    what = f"the {len(order)} rows that moved furthest" if len(order) < len(far) else "how far each row moved"
    figure = _figure(f"{name}: {what}" if name else what)
    figure.add_bar(
        x=far[order], y=np.arange(len(order)), orientation="h", width=0.7, marker={"color": BLUE, "line": {"width": 0}},
        text=[_text(words[row]) for row in order.tolist()], textposition="none",
        hovertemplate="%{text}: %{x:.4g}<extra></extra>",
    )  # fmt: skip
    ticks = [_text(_short(words[row])) for row in order.tolist()]
    figure.update_yaxes(tickvals=list(range(len(order))), ticktext=ticks, showgrid=False, automargin=True)
    figure.update_layout(height=110 + 20 * len(order), xaxis_title="distance from the start", xaxis_rangemode="tozero")
    return figure


def spread(far: Floats) -> Figure:
    """How far all rows moved, as a histogram; `far` has shape (R,)."""
    counts, edges = np.histogram(far[np.isfinite(far)], bins=min(40, max(8, len(far) // 8)))
    figure = _figure(f"all {len(far):,} rows that learn")
    spans = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges.tolist())]
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2, y=counts, width=np.diff(edges) * 0.92, text=spans, textposition="none",
        marker={"color": GREEN, "line": {"width": 0}}, hovertemplate="%{y} rows moved %{text}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(xaxis_title="distance from the start", yaxis_title="rows", xaxis_rangemode="tozero")
    return figure


def travel(movement: Movement) -> Figure:
    """The map of a movement: where rows began (rings), where they ended (dots), and the rows that stand still."""
    learns = np.flatnonzero(movement.learns.numpy())[:_MAPPED]
    rows = np.concatenate([learns, np.flatnonzero(~movement.learns.numpy())])
    values = np.stack([_drawable(movement.before)[rows], _drawable(movement.after)[rows]])
    return _map([movement.words[row] for row in rows.tolist()], values, len(learns))


def paths(one: Recorded) -> Figure:
    """The map of recorded rows: the whole way of each that moved; of many, the 150 that went furthest."""
    values, far = _rows(one), distance(one)
    order = np.argsort(-far[-1], kind="stable")[:_MAPPED]
    stood = (far[:, order] == 0).all(axis=0)
    rows = np.concatenate([order[~stood], order[stood]])
    words = one.words or []
    return _map([words[row] for row in rows.tolist()], values[:, rows], int((~stood).sum()))


def plane(before: Floats, after: Floats) -> Floats:
    """The two directions, at right angles, along which rows moved most; every row that moved has the same say.

    Args:
        before: Rows before, shape (R, D).
        after: The same rows after.

    Returns:
        A plane of shape (D, 2), its second column 0 where there is one direction only. On the map `rows @ plane` a row
        that stood still stands still exactly.

    Example:
        >>> before, after = np.zeros((3, 3)), np.array([[0.0, 5, 0], [0, -1, 0], [0, 0, 1]])
        >>> abs(plane(before, after)).T.round(6).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    ways = after - before
    ways = ways[np.isfinite(ways).all(axis=1)]
    ways = ways / np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-300)
    flat = np.zeros((before.shape[1], 2))
    if len(ways):
        _, _, directions = np.linalg.svd(ways, full_matrices=False)
        found: Floats = directions[:2].T
        flat[:, : found.shape[1]] = found
    return flat


def _map(words: Sequence[str], values: Floats, moved: int) -> Figure:
    """The map of N rows at P times, `values` (P, N, D): the first `moved` of them learned, the others are grey."""
    figure = _figure("")
    places = values @ plane(values[0, :moved], values[-1, :moved])  # (P, N, 2)
    ways, still = places[:, :moved], places[0, moved:]
    if len(still):
        figure.add_scatter(
            x=still[:, 0], y=still[:, 1], mode="markers", name="frozen", marker={"color": GREY, "size": 5}, opacity=0.5,
            text=[_text(word) for word in words[moved:]], hovertemplate="%{text}, frozen<extra></extra>",
        )  # fmt: skip
    gap = np.full((1, moved, 2), np.nan)  # ends the way of one row before that of the next
    lines = np.concatenate([ways, gap]).transpose(1, 0, 2).reshape(-1, 2)
    figure.add_scatter(
        x=lines[:, 0], y=lines[:, 1], mode="lines", line={"color": BLUE, "width": 1.2}, opacity=0.5, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    low, high = _bounds(ways)
    named = _with_room((ways[-1] - low) / (high - low), [_short(word) for word in words[:moved]])
    for time, name, symbol, colour in ((0, "before", "circle-open", ORANGE), (-1, "after", "circle", BLUE)):
        figure.add_scatter(
            x=ways[time, :, 0], y=ways[time, :, 1], name=name, mode="markers+text" if time else "markers",
            marker={"color": colour, "size": 6, "symbol": symbol}, textposition="top center",
            text=[_text(_short(word)) if row in named else "" for row, word in enumerate(words[:moved])],
            customdata=[_text(word) for word in words[:moved]], hovertemplate=f"%{{customdata}}, {name}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(height=600, showlegend=True, hovermode="closest", legend_y=-0.02)
    figure.update_xaxes(range=[low[0], high[0]], showticklabels=False, showgrid=False, mirror=True, showline=True)
    figure.update_yaxes(range=[low[1], high[1]], showticklabels=False, showgrid=False, mirror=True, showline=True)
    return figure


def _bounds(ways: Floats) -> tuple[Floats, Floats]:
    """The lower left and the upper right corner of a map that holds `ways` (P, R, 2) and words beside their ends."""
    points = ways.reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    low, high = (points.min(axis=0), points.max(axis=0)) if len(points) else (np.zeros(2), np.ones(2))
    room = np.maximum((high - low) * np.array([0.09, 0.07]), 1e-9)
    return low - room, high + room


def _with_room(ends: Floats, words: Sequence[str]) -> set[int]:
    """Which words can be written over their `ends`, (R, 2) from 0 to 1, without touching: the first ones first."""
    named: dict[int, tuple[float, float, float]] = {}  # row -> centre, height, half a width
    for row, (x, y) in enumerate(ends.tolist()):
        half = 0.004 * len(words[row]) + 0.008
        clear = all(abs(x - a) > half + b or abs(y - c) > 0.035 for a, c, b in named.values())
        if clear and half <= x <= 1 - half and len(named) < _NAMED:
            named[row] = x, y, half
    return set(named)


def _figure(title: str) -> Figure:
    try:
        from plotly.graph_objects import Figure
    except ImportError:
        raise MissingExtraError("the page's charts need plotly. Install it: pip install 'frostline[report]'") from None
    layout: dict[str, Any] = {
        "template": None,
        "title": {"text": _text(title), "x": 0, "xref": "container", "xanchor": "left", "font": {"size": 14}},
        "height": 320,
        "margin": {"l": 8, "r": 12, "t": 44 if title else 12, "b": 8},
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.22, "x": 0},
        "hoverlabel": {"namelength": -1},
    }
    figure = Figure(layout=layout)
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    return figure


def _rows(one: Recorded) -> Floats:
    """The recorded rows as (P, R, D), whatever the shape of a row."""
    return _drawable(one.values.flatten(2) if one.values.ndim > 2 else one.values.unsqueeze(2))


def _drawable(values: Tensor) -> Floats:
    """The values as float64, NaN for infinity: neither has a place in a chart."""
    found: Floats = values.double().numpy()
    return np.where(np.isfinite(found), found, np.nan)


def _moved(values: Floats) -> Floats:
    """How far each entry went, whatever the way back, shape (n,), from (P, n); what left the numbers went furthest."""
    found: Floats = np.nan_to_num(values.max(axis=0) - values.min(axis=0), nan=np.inf)
    return found


def _colours(count: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(count)]


def _text(word: str) -> str:
    """A word as plotly shows it as it is: no tag of it is obeyed, and no blank line breaks a label."""
    shown = " ".join(word.encode("utf-8", "replace").decode().split()) or "(blank)"
    return escape(shown, quote=False) if word else ""


def _short(word: str) -> str:
    return word if len(word) <= 24 else f"{word[:23]}…"
