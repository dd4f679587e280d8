"""What the page says, section by section: the figures first; where something is missing, one line says what.

Every piece of text that comes from the run passes through `escape`.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from frostline.record import Recorded
from frostline.report import charts
from frostline.report.contents import Contents, Curve
from frostline.report.tree import leaves, legend, tree

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SHOWN = 24  # charts of one section


class _Charts:
    """The charts of a page: their places in its text, and their data for its end."""

    def __init__(self) -> None:
        self._figures: list[str] = []

    def place(self, figures: Iterable[Figure], wide: bool = False) -> str:
        """The places of some charts, side by side where there is room, or each as wide as the page."""
        places = []
        for figure in figures:
            places.append(f'<div class="chart" id="chart{len(self._figures)}"></div>')
            self._figures.append(figure.to_json())
        return f'<div class="charts{" wide" if wide else ""}">{"".join(places)}</div>' if places else ""

    def data(self) -> str:
        """All figures as one JSON object; plotly writes it so that it cannot end the script element it stands in."""
        return "{" + ",".join(f'"chart{number}":{figure}' for number, figure in enumerate(self._figures)) + "}"


def title(contents: Contents) -> str:
    """What the run was, in a few words."""
    return str((contents.run.about or {}).get("title") or f"The run in {contents.folder.resolve().name}")


def body(contents: Contents) -> tuple[str, str]:
    """The page's text as HTML, and the data of its charts as JSON."""
    page = _Charts()
    sections = [
        ("What learns", _what_learns(contents)),
        ("Curves", _curves(contents, page)),
        ("How far rows moved", _movement(contents, page)),
        ("Where they went", _maps(contents, page)),
        ("What was recorded", _tensors(contents, page)),
        ("Audit", _audit(contents)),
    ]
    parts = [
        f"<h1>{escape(title(contents))}</h1>",
        f'<p class="soft">{escape(str(contents.folder))}</p>',
        _figures_first(contents),
        _facts(contents),
        *(f"<section><h2>{heading}</h2>\n{text}</section>" for heading, text in sections if text),
        "<footer>Written by <code>frostline report</code>. Everything is in this file.</footer>",
    ]
    return "\n".join(part for part in parts if part), page.data()


def _figures_first(contents: Contents) -> str:
    cells: list[tuple[str, str, str]] = []  # kind, figure, what it is
    audit, movement = contents.run.audit, contents.run.movement
    found = leaves(contents.run.plan, contents.run.explanation)
    if audit is not None:
        moved, compared = audit.get("frozen_moved", 0), audit.get("frozen_compared", 0)
        cells.append(("bad" if moved else "good", f"{moved:,} of {compared:,}", "frozen numbers moved, bit by bit"))
    if contents.run.explanation is not None:
        alarms = sum(leaf.alarm for leaf in found)
        cells.append(("bad" if alarms else "good", f"{alarms:,}", "tensors that hardly do what was meant"))
    if total := sum(leaf.total for leaf in found):
        learned = sum(leaf.learned for leaf in found)
        cells.append(("", f"{100 * learned / total:.3g} %", f"of the model learns: {learned:,} of {total:,} numbers"))
    if movement is not None and len(movement.distances):
        went = int((movement.distances > 0).sum())
        cells.append(("", f"{went:,} of {len(movement.distances):,}", "rows that learn moved"))
    drawn = contents.curves()
    first = [curve for curve in drawn if curve.run == drawn[0].run]
    for curve in sorted(first, key=lambda curve: "loss" not in curve.quantity.lower())[:2]:
        what = f"{curve.quantity}, {curve.axis} {curve.x[0]} to {curve.x[-1]}" + (f": {curve.run}" if curve.run else "")
        cells.append(("", f"{curve.y[0]:.3g} → {curve.y[-1]:.3g}", what))
    made = "".join(
        f'<div class="{kind}"><b>{value}</b><span>{escape(what)}</span></div>' for kind, value, what in cells
    )
    return f'<div class="figures">{made}</div>' if made else ""


def _facts(contents: Contents) -> str:
    facts = (contents.run.about or {}).get("facts") or {}
    listed = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(text))}</dd>" for name, text in facts.items())
    return f"<dl>{listed}</dl>" if listed else ""


def _what_learns(contents: Contents) -> str:
    plan, explanation = contents.run.plan, contents.run.explanation
    if plan is None and explanation is None:
        return _missing("No plan.json and no explanation.json here. Leave one: describe_run(folder, plan=plan).")
    found = leaves(plan, explanation)
    source = "As <code>fl.explain</code> found it" if explanation is not None else "As the plan has it"
    return f'<p class="soft">{source}. Modules open on a click.</p>{legend(found)}{tree(found)}'


def _curves(contents: Contents, page: _Charts) -> str:
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in contents.curves():
        groups.setdefault((curve.quantity, curve.axis), []).append(curve)
    if not groups:
        return _missing("No curve here. Record one: recorder(loss=loss) at each step.")
    return page.place(charts.curves(lines) for lines in list(groups.values())[:_SHOWN]) + _rest(len(groups))


def _movement(contents: Contents, page: _Charts) -> str:
    parts, movement = [], contents.run.movement
    if movement is not None and len(movement.distances):
        far = (movement.after.double() - movement.before.double()).norm(dim=1)[movement.learns].numpy()
        words = [word for word, learns in zip(movement.words, movement.learns.tolist(), strict=True) if learns]
        parts.append(page.place([charts.furthest(words, far), charts.spread(movement.distances.double().numpy())]))
    for name, one in _rows(contents):
        bars = charts.furthest(one.words or [], charts.distance(one)[-1], name)
        parts.append(page.place([bars, charts.distances(name, one)]))
    return "".join(parts) or _missing("No rows here. Record some: fl.Recorder(folder, {name: (table, ids)}).")


def _maps(contents: Contents, page: _Charts) -> str:
    parts, movement = [], contents.run.movement
    if movement is not None and movement.distances.any():
        parts.append(page.place([charts.travel(movement)], wide=True))
    for name, one in _rows(contents):
        if not charts.distance(one).any():
            continue  # nothing moved, so there is no direction to look along
        parts.append(f"<h3>{escape(name)}</h3>{page.place([charts.paths(one)], wide=True)}")
    if not parts:
        return ""
    about = (
        "Seen along the two directions in which they moved most. A ring is where a row began, a dot where it ended; "
        "rows that are frozen are grey. Point at one to read its word."
    )
    return f'<p class="soft">{about}</p>{"".join(parts)}'


def _tensors(contents: Contents, page: _Charts) -> str:
    found = [(name, one) for name, one in contents.record.items() if one.kind == "tensor"]
    return page.place(charts.entries(name, one) for name, one in found[:_SHOWN]) + _rest(len(found))


def _audit(contents: Contents) -> str:
    audit = contents.run.audit
    if audit is None:
        return _missing("No audit.json here. Compare what was frozen and leave one: describe_run(folder, audit=...).")
    lines = [
        ("frozen numbers", audit.get("frozen_compared", 0), audit.get("frozen_moved", 0)),
        ("rows that learn", audit.get("learned_rows", 0), audit.get("learned_rows_moved", 0)),
    ]
    rows = "".join(f"<tr><td>{name}</td><td>{of:,}</td><td>{moved:,}</td></tr>" for name, of, moved in lines)
    head = "<tr><th></th><th>compared</th><th>moved</th></tr>"
    return f"<p>Every bit before training against every bit after it.</p><table>{head}{rows}</table>"


def _rows(contents: Contents) -> list[tuple[str, Recorded]]:
    return [(name, one) for name, one in contents.record.items() if one.kind == "rows"]


def _missing(text: str) -> str:
    return f'<p class="missing">{escape(text)}</p>'


def _rest(count: int) -> str:
    return _missing(f"{count - _SHOWN} more are not drawn.") if count > _SHOWN else ""
