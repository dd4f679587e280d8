"""The charts of a run as plotly figures: curves, recorded values, distances, maps of rows that moved, confusion.

Letters used for shapes in this file:
    P  points of a trajectory         D  width of a row
    R  rows that moved                N  rows on a map

Figures set no background and no text colour: the page sets both, light or dark. Words come from the run, and plotly
reads text as HTML, so they are escaped. The colours are close to Okabe and Ito's: distinct for people with any colour
vision, visible on light and on dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from frostline.errors import MissingExtraError
from frostline.record import Recorded, RowChanges
from frostline.report.contents import Curve

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Floats = npt.NDArray[np.float64]
BLUE, ORANGE, GREEN, GREY = "#2F86C4", "#D55E00", "#009E73", "#8A949C"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7A5C3E")
_MOST_BARS, _MOST_LINES, _MOST_POINTS = 25, 40, 2000  # of one chart; points: of one curve
_MOST_MAPPED, _MOST_LABELS = 150, 40  # rows on a map, words written on it


def curves(lines: Sequence[Curve]) -> Figure:
    """Draw one quantity, or several of one unit, over epochs or steps, a line per run; at most 2,000 points of each."""
    shared = len({line.quantity for line in lines}) > 1
    figure = _figure(unit(lines[0].quantity) if shared else lines[0].quantity)
    for line, colour in zip(lines, _colours(len(lines)), strict=True):
        every = -(-len(line.x) // _MOST_POINTS)
        figure.add_scatter(
            x=line.x[::-every][::-1], y=line.y[::-every][::-1], mode="lines" if len(line.x) > 1 else "markers",
            name=_text(f"{line.run} {line.quantity if shared or not line.run else ''}".strip()),
            line={"color": colour, "width": 2}, hovertemplate=f"{line.axis} %{{x}}: %{{y:.4g}}",
        )  # fmt: skip
    figure.update_layout(showlegend=len(lines) > 1, xaxis_title=lines[0].axis)
    if max(line.x[-1] - line.x[0] for line in lines) <= 10:
        figure.update_xaxes(dtick=1)  # no ticks between two epochs
    return figure


def unit(name: str) -> str:
    """Return the unit that a name ends with in brackets; curves of one unit share a chart.

    Example:
        >>> unit("w1 [weight]"), unit("loss")
        ('weight', '')
    """
    head, bracket, tail = name.rpartition(" [")
    return tail[:-1] if head and bracket and tail.endswith("]") else ""


def entries(tensors: Mapping[str, Recorded]) -> Figure:
    """Draw the entries of small tensors over steps, in one chart; of more than 40, those that moved furthest."""
    lines = [
        (name, recorded, values[:, entry], np.unravel_index(entry, recorded.values.shape[1:]))
        for name, recorded in tensors.items()
        for values in [_finite(recorded.values.flatten(1))]  # (P, n)
        for entry in range(values.shape[1])
    ]
    ranges = np.array([_ranges(values[:, None])[0] for _, _, values, _ in lines])
    drawn = np.sort(np.argsort(-ranges, kind="stable")[:_MOST_LINES])
    first = next(iter(tensors))
    title = unit(first) if len(tensors) > 1 else first
    left_out = len(lines) - len(drawn)
    figure = _figure(title + (f": the {len(drawn)} entries that moved furthest of {len(lines):,}" if left_out else ""))
    for index, colour in zip(drawn.tolist(), _colours(len(drawn)), strict=True):
        name, recorded, values, place = lines[index]
        label = f"[{', '.join(str(int(part)) for part in place)}]"
        figure.add_scatter(
            x=recorded.steps, y=values, name=_text(f"{name} {label}" if len(tensors) > 1 else label), mode="lines",
            line={"color": colour, "width": 2}, hovertemplate="step %{x}: %{y:.6g}",
        )  # fmt: skip
    figure.update_layout(showlegend=1 < len(drawn) <= 12, xaxis_title="step")
    return figure


def distance(recorded: Recorded) -> Floats:
    """Return the distance of each recorded row from its start, at each point, shape (P, R)."""
    values = _rows(recorded)  # (P, R, D)
    found: Floats = np.linalg.norm(values - values[:1], axis=2)
    return found


def distances(name: str, recorded: Recorded) -> Figure:
    """Draw the distance of each recorded row from its start over steps; of more than 40, those that ended furthest."""
    far = distance(recorded)
    furthest = np.argsort(-far[-1], kind="stable")[:_MOST_LINES]
    figure = _figure(f"{name}: distance from the start")
    words = recorded.words or []
    for row, colour in zip(furthest.tolist(), _colours(len(furthest)), strict=True):
        figure.add_scatter(
            x=recorded.steps, y=far[:, row], name=_text(words[row]), mode="lines", line={"color": colour, "width": 2},
            hovertemplate="step %{x}: %{y:.4g}",
        )  # fmt: skip
    figure.update_layout(showlegend=len(furthest) <= 12, xaxis_title="step")
    return figure


def furthest(words: Sequence[str], far: Floats, name: str = "") -> Figure:
    """Draw a bar for each of the 25 words that moved furthest, the furthest on top; `far` has shape (R,)."""
    order = np.argsort(-far, kind="stable")[:_MOST_BARS][::-1]
    title = f"the {len(order)} rows that moved furthest" if len(order) < len(far) else "how far each row moved"
    figure = _figure(f"{name}: {title}" if name else title)
    figure.add_bar(
        x=far[order], y=np.arange(len(order)), orientation="h", width=0.7, marker={"color": BLUE, "line": {"width": 0}},
        text=[_text(words[row]) for row in order.tolist()], textposition="none",
        hovertemplate="%{text}: %{x:.4g}<extra></extra>",
    )  # fmt: skip
    ticks = [_text(_short(words[row])) for row in order.tolist()]
    figure.update_yaxes(tickvals=list(range(len(order))), ticktext=ticks, showgrid=False, automargin=True)
    figure.update_layout(height=110 + 20 * len(order), xaxis_title="distance from the start", xaxis_rangemode="tozero")
    return figure


def histogram(far: Floats) -> Figure:
    """Draw how far all rows moved as a histogram; `far` has shape (R,)."""
    counts, edges = np.histogram(far[np.isfinite(far)], bins=min(40, max(8, len(far) // 8)))
    figure = _figure(f"all {len(far):,} rows that learn")
    spans = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges.tolist())]
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2, y=counts, width=np.diff(edges) * 0.92, text=spans, textposition="none",
        marker={"color": GREEN, "line": {"width": 0}}, hovertemplate="%{y} rows moved %{text}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(xaxis_title="distance from the start", yaxis_title="rows", xaxis_rangemode="tozero")
    return figure


def map_of_changes(changes: RowChanges) -> tuple[Figure, float]:
    """Return the map of rows before (rings) and after training (dots) and of frozen rows, and how much it shows."""
    learns = np.flatnonzero(changes.learns.numpy())[:_MOST_MAPPED]
    rows = np.concatenate([learns, np.flatnonzero(~changes.learns.numpy())])
    values = np.stack([_finite(changes.before)[rows], _finite(changes.after)[rows]])
    return _map([changes.words[row] for row in rows.tolist()], values, len(learns))


def map_of_recorded(recorded: Recorded) -> tuple[Figure, float]:
    """Return the map of recorded rows, the path of each that moved (of many, the 150 that moved most), and its share.

    The share is how much the map shows: of the squared distances between start and end, what lies in its plane.
    """
    values, far = _rows(recorded), distance(recorded)
    order = np.argsort(-far[-1], kind="stable")[:_MOST_MAPPED]
    unmoved = (far[:, order] == 0).all(axis=0)
    rows = np.concatenate([order[~unmoved], order[unmoved]])
    words = recorded.words or []
    return _map([words[row] for row in rows.tolist()], values[:, rows], int((~unmoved).sum()))


def plane_of_movement(before: Floats, after: Floats) -> Floats:
    """Return the two orthogonal directions along which rows moved most; all rows that moved weigh the same.

    Args:
        before: Rows before, shape (R, D).
        after: The same rows after.

    Returns:
        A plane of shape (D, 2); its second column is 0 if all moved along one direction. On the map `rows @ plane` a
        row that did not move has exactly the same position before and after.

    Example:
        >>> before, after = np.zeros((3, 3)), np.array([[0.0, 5, 0], [0, -1, 0], [0, 0, 1]])
        >>> abs(plane_of_movement(before, after)).T.round(6).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    steps = after - before
    steps = steps[np.isfinite(steps).all(axis=1)]
    steps = steps / np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-300)
    found = np.zeros((before.shape[1], 2))
    if len(steps):
        _, _, directions = np.linalg.svd(steps, full_matrices=False)
        found[:, : len(directions[:2])] = directions[:2].T
    return found


def confusion(types: Sequence[str], rows: str, columns: str, counts: Sequence[Sequence[int]]) -> Figure:
    """Draw the confusion matrix of entity types: a count in each cell, shaded by its share of the row.

    Args:
        types: The names of T types.
        rows, columns: What the rows and the columns are, such as "gold" and "predicted".
        counts: T + 1 rows of T + 1 counts; the last row and the last column count entities without a partner.
    """
    labels = [_text(_short(name)) for name in (*types, "nothing")]
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    cells = [(x, y, count) for y, row in enumerate(counts) for x, count in enumerate(row) if count]
    figure = _figure("")
    figure.add_heatmap(
        z=shares, zmin=0, zmax=1, colorscale=[[0, "rgba(47,134,196,0)"], [1, "rgba(47,134,196,0.75)"]], showscale=False,
        xgap=2, ygap=2, customdata=counts, hovertemplate="%{customdata:,} (%{z:.1%} of the row)<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(  # a heatmap's own text would not follow the page's colour
        x=[x for x, _, _ in cells], y=[y for _, y, _ in cells], text=[f"{count:,}" for _, _, count in cells],
        mode="text", hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "showgrid": False}
    figure.update_xaxes(title=_text(columns), side="top", **ticks)
    figure.update_yaxes(title=_text(rows), autorange="reversed", **ticks)
    figure.update_layout(height=150 + 36 * len(labels))
    return figure


def f1_by_type(types: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw F1, and precision and recall, of each type, the commonest first; fractions as percent."""
    names = sorted(types, key=lambda kind: -types[kind]["gold"])[:_MOST_BARS]
    figure = _figure("")
    for value, colour in (("precision", COLOURS[5]), ("recall", ORANGE), ("f1", BLUE)):
        figure.add_bar(
            x=np.arange(len(names)), y=[100 * types[kind][value] for kind in names], name=value.upper() if value == "f1"
            else value, marker={"color": colour, "line": {"width": 0}}, text=[_text(kind) for kind in names],
            textposition="none", hovertemplate="%{text}: %{y:.1f} %",
        )  # fmt: skip
    ticks = [_text(_short(kind)) for kind in names]
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=ticks, showgrid=False)
    figure.update_yaxes(range=[0, 100], title="%")
    figure.update_layout(barmode="group", bargap=0.3, showlegend=True)
    return figure


def _map(words: Sequence[str], values: Floats, moved: int) -> tuple[Figure, float]:
    """Draw the map of N rows at P times, `values` (P, N, D): the first `moved` of them in colour, the others grey."""
    figure = _figure("")
    plane = plane_of_movement(values[0, :moved], values[-1, :moved])
    points = values @ plane  # (P, N, 2)
    steps = values[-1, :moved] - values[0, :moved]
    whole = np.nansum(steps**2)
    share = float(np.nansum((steps @ plane) ** 2) / whole) if whole else 1.0
    paths, still = points[:, :moved], points[0, moved:]
    if len(still):
        figure.add_scatter(
            x=still[:, 0], y=still[:, 1], mode="markers", name="frozen", marker={"color": GREY, "size": 5}, opacity=0.5,
            text=[_text(word) for word in words[moved:]], hovertemplate="%{text}, frozen<extra></extra>",
        )  # fmt: skip
    gap = np.full((1, moved, 2), np.nan)  # ends the path of one row before that of the next
    lines = np.concatenate([paths, gap]).transpose(1, 0, 2).reshape(-1, 2)
    figure.add_scatter(
        x=lines[:, 0], y=lines[:, 1], mode="lines", line={"color": BLUE, "width": 1.2}, opacity=0.5, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    low, high = _bounds(np.concatenate([paths, points[:, moved:]], axis=1))
    labelled = _without_overlap((paths[-1] - low) / (high - low), [_short(word) for word in words[:moved]])
    for time, name, symbol, colour in ((0, "before", "circle-open", ORANGE), (-1, "after", "circle", BLUE)):
        figure.add_scatter(
            x=paths[time, :, 0], y=paths[time, :, 1], name=name, mode="markers+text" if time else "markers",
            marker={"color": colour, "size": 6, "symbol": symbol}, textposition="top center",
            text=[_text(_short(word)) if row in labelled else "" for row, word in enumerate(words[:moved])],
            customdata=[_text(word) for word in words[:moved]], hovertemplate=f"%{{customdata}}, {name}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(height=600, showlegend=True, hovermode="closest", legend_y=-0.02)
    figure.update_xaxes(range=[low[0], high[0]], showticklabels=False, showgrid=False, mirror=True, showline=True)
    figure.update_yaxes(range=[low[1], high[1]], showticklabels=False, showgrid=False, mirror=True, showline=True)
    return figure, share


def _bounds(paths: Floats) -> tuple[Floats, Floats]:
    """Return the lower left and upper right corner of a map that fits `paths` (P, N, 2) and their words."""
    points = paths.reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    low, high = (points.min(axis=0), points.max(axis=0)) if len(points) else (np.zeros(2), np.ones(2))
    margin = np.maximum((high - low) * np.array([0.09, 0.07]), 1e-9)
    return low - margin, high + margin


def _without_overlap(ends: Floats, words: Sequence[str]) -> set[int]:
    """Return the words that fit over their `ends`, (R, 2) from 0 to 1, without overlap; earlier words come first."""
    labelled: dict[int, tuple[float, float, float]] = {}  # row -> centre, height, half of the width
    for row, (x, y) in enumerate(ends.tolist()):
        half = 0.004 * len(words[row]) + 0.008
        clear = all(abs(x - a) > half + b or abs(y - c) > 0.035 for a, c, b in labelled.values())
        if clear and half <= x <= 1 - half and len(labelled) < _MOST_LABELS:
            labelled[row] = x, y, half
    return set(labelled)


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


def _rows(recorded: Recorded) -> Floats:
    """Return the recorded rows as (P, R, D), whatever the shape of a row."""
    values = recorded.values
    return _finite(values.flatten(2) if values.ndim > 2 else values.unsqueeze(2))


def _finite(values: Tensor) -> Floats:
    """Return the values as float64, with NaN for infinity: a chart leaves a gap at NaN."""
    found: Floats = values.double().numpy()
    return np.where(np.isfinite(found), found, np.nan)


def _ranges(values: Floats) -> Floats:
    """Return maximum - minimum of each entry, shape (n,), from (P, n); infinity for an entry with a NaN."""
    found: Floats = np.nan_to_num(values.max(axis=0) - values.min(axis=0), nan=np.inf)
    return found


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _text(word: str) -> str:
    """Return a word as HTML that plotly shows literally, on one line."""
    shown = " ".join(word.encode("utf-8", "replace").decode().split()) or "(blank)"
    return escape(shown, quote=False) if word else ""


def _short(word: str) -> str:
    return word if len(word) <= 24 else f"{word[:23]}…"
