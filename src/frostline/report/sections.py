"""The sections of the page: the key figures first; where a file is missing, one line says which.

Every text that comes from the run passes through `escape`.
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

_MOST_CHARTS = 24  # of one section
_LEAST_SHOWN = 0.5  # of how rows moved: a map that shows less is a tangle of lines


class _Charts:
    """The charts of a page: empty elements in its text, and their data for its end."""

    def __init__(self) -> None:
        self._figures: list[str] = []

    def add(self, figures: Iterable[Figure], wide: bool = False) -> str:
        """Return the elements of some charts, side by side if the page is wide enough, or each as wide as the page."""
        elements = []
        for figure in figures:
            elements.append(f'<div class="chart" id="chart{len(self._figures)}"></div>')
            self._figures.append(figure.to_json())
        return f'<div class="charts{" wide" if wide else ""}">{"".join(elements)}</div>' if elements else ""

    def data(self) -> str:
        """Return all figures as one JSON object; plotly escapes `<`, so no word can close the script element."""
        return "{" + ",".join(f'"chart{index}":{figure}' for index, figure in enumerate(self._figures)) + "}"


def title(contents: Contents) -> str:
    """Return the title of the run, by default the name of its folder."""
    return str((contents.run.about or {}).get("title") or f"The run in {contents.folder.resolve().name}")


def body(contents: Contents) -> tuple[str, str]:
    """Return the text of the page as HTML, and the data of its charts as JSON."""
    page = _Charts()
    sections = [
        ("What is found", _scores(contents, page)),
        ("Confusion", _confusion(contents, page)),
        ("What learns", _what_learns(contents)),
        ("By what path it learns", _path(contents)),
        ("Curves", _curves(contents, page)),
        ("How far rows moved", _distances(contents, page)),
        ("Where they moved", _maps(contents, page)),
        ("Recorded tensors", _tensors(contents, page)),
        ("Audit", _audit(contents)),
    ]
    parts = [
        f"<h1>{escape(title(contents))}</h1>",
        f'<p class="soft">{escape(str(contents.folder))}</p>',
        _key_figures(contents),
        _facts(contents),
        *(f"<section><h2>{heading}</h2>\n{text}</section>" for heading, text in sections if text),
        "<footer>Written by <code>frostline report</code>. Everything is in this file.</footer>",
    ]
    return "\n".join(part for part in parts if part), page.data()


def _key_figures(contents: Contents) -> str:
    cells: list[tuple[str, str, str]] = []  # kind, figure, label
    audit, changes, scores = contents.run.audit, contents.run.row_changes, contents.run.scores
    if scores is not None:
        cells.append(("", f"{100 * scores['all']['f1']:.1f} %", f"F1 in {scores['text']}"))
    found = leaves(contents.run.plan, contents.run.explanation)
    if audit is not None:
        moved, compared = audit.get("frozen_moved", 0), audit.get("frozen_compared", 0)
        cells.append(("bad" if moved else "good", f"{moved:,} of {compared:,}", "frozen values moved, bit by bit"))
    if contents.run.explanation is not None:
        alarms = sum(leaf.alarm for leaf in found)
        cells.append(("bad" if alarms else "good", f"{alarms:,}", "tensors with an alarm"))
    if total := sum(leaf.total for leaf in found):
        learned = sum(leaf.learned for leaf in found)
        label = f"of the model learns: {learned:,} of {total:,} parameters"
        cells.append(("", f"{100 * learned / total:.3g} %", label))
    if changes is not None and len(changes.distances):
        rows_moved = int((changes.distances > 0).sum())
        cells.append(("", f"{rows_moved:,} of {len(changes.distances):,}", "rows that learn moved"))
    drawn = contents.curves()
    first = [curve for curve in drawn if curve.run == drawn[0].run]
    for curve in sorted(first, key=lambda curve: "loss" not in curve.quantity.lower())[:2]:
        run = f": {curve.run}" if curve.run else ""
        label = f"{curve.quantity}, {curve.axis} {curve.x[0]} to {curve.x[-1]}{run}"
        cells.append(("", f"{curve.y[0]:.3g} → {curve.y[-1]:.3g}", label))
    html = "".join(
        f'<div class="{kind}"><b>{value}</b><span>{escape(label)}</span></div>' for kind, value, label in cells
    )
    return f'<div class="figures">{html}</div>' if html else ""


def _facts(contents: Contents) -> str:
    facts = (contents.run.about or {}).get("facts") or {}
    items = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(text))}</dd>" for name, text in facts.items())
    return f"<dl>{items}</dl>" if items else ""


def _what_learns(contents: Contents) -> str:
    plan, explanation = contents.run.plan, contents.run.explanation
    if plan is None and explanation is None:
        return _missing("No plan.json and no explanation.json here. Write one: describe_run(run_folder, plan=plan).")
    found = leaves(plan, explanation)
    source = "Found by <code>fl.explain</code>" if explanation is not None else "From the plan"
    return f'<p class="soft">{source}. Click a module to open it.</p>{legend(found)}{tree(found)}'


def _path(contents: Contents) -> str:
    path = contents.run.path
    if path is None:
        return ""
    cut = len(path["calls"]) if path["cut"] is None else path["cut"]
    boxes = [("", "loss", "", "")]
    for index, call in enumerate(path["calls"]):
        kind = "" if index < cut else "cut" if index == cut else "beyond"
        boxes.append((kind, call["call"], call["where"] or "", call["source"]))
    boxes.append(("beyond" if path["end"] else "", path["name"], path["end"], ""))
    items = "".join(
        f'<li class="{kind}"><b>{escape(name)}</b> <span>{escape(where)}</span><code>{escape(source)}</code></li>'
        for kind, name, where, source in boxes
    )
    about = "The gradient runs from the loss down to the parameter, unless a call, in a dashed box, cuts it."
    return f'<p class="soft">{about}</p><ol class="path">{items}</ol>'


def _curves(contents: Contents, page: _Charts) -> str:
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in contents.curves():
        groups.setdefault((charts.unit(curve.quantity) or curve.quantity, curve.axis), []).append(curve)
    if not groups:
        return _missing("No curves here. Record one: recorder(loss=loss) at each step.")
    return page.add(charts.curves(lines) for lines in list(groups.values())[:_MOST_CHARTS]) + _rest(len(groups))


def _distances(contents: Contents, page: _Charts) -> str:
    parts, changes = [], contents.run.row_changes
    if changes is not None and len(changes.distances):
        far = (changes.after.double() - changes.before.double()).norm(dim=1)[changes.learns].numpy()
        words = [word for word, learns in zip(changes.words, changes.learns.tolist(), strict=True) if learns]
        parts.append(page.add([charts.furthest(words, far), charts.histogram(changes.distances.double().numpy())]))
    for name, recorded in _rows(contents):
        bars = charts.furthest(recorded.words or [], charts.distance(recorded)[-1], name)
        parts.append(page.add([bars, charts.distances(name, recorded)]))
    return "".join(parts) or _missing("No rows here. Record some: fl.Recorder(run_folder, {name: (table, ids)}).")


def _maps(contents: Contents, page: _Charts) -> str:
    parts, changes, left_out = [], contents.run.row_changes, []
    if changes is not None and changes.distances.any():
        figure, share = charts.map_of_changes(changes)
        parts += [page.add([figure], wide=True)] if share >= _LEAST_SHOWN else []
        left_out += [] if share >= _LEAST_SHOWN else [("the rows that learn", share)]
    for name, recorded in _rows(contents):
        if charts.distance(recorded).any():  # if no row moved, the map has no direction
            figure, share = charts.map_of_recorded(recorded)
            if share < _LEAST_SHOWN:
                left_out.append((name, share))
            else:
                parts.append(f"<h3>{escape(name)}</h3>{page.add([figure], wide=True)}")
    words = "".join(
        _missing(
            f"No map of {name}: the two main directions hold {share:.0%} of how rows moved, so it would be a tangle."
        )
        for name, share in left_out
    )
    if not parts:
        return words
    about = (
        "The two axes are the directions in which rows moved most. A ring is a row before training, a dot after it; "
        "frozen rows are grey. Point at one to read its word."
    )
    return f'<p class="soft">{about}</p>{"".join(parts)}{words}'


def _tensors(contents: Contents, page: _Charts) -> str:
    groups: dict[str, dict[str, Recorded]] = {}
    for name, recorded in contents.record.items():
        if recorded.kind == "tensor":
            groups.setdefault(charts.unit(name) or name, {})[name] = recorded
    return page.add(charts.entries(group) for group in list(groups.values())[:_MOST_CHARTS]) + _rest(len(groups))


def _scores(contents: Contents, page: _Charts) -> str:
    scores = contents.run.scores
    if scores is None:
        return ""
    rows = [*sorted(scores["types"].items(), key=lambda pair: -pair[1]["gold"]), ("all", scores["all"])]
    head = "<tr><th>type</th><th>precision</th><th>recall</th><th>F1</th><th>gold</th><th>found</th></tr>"
    table = "".join(
        f"<tr><td>{escape(kind)}</td><td>{of['precision']:.1%}</td><td>{of['recall']:.1%}</td><td>{of['f1']:.1%}</td>"
        f"<td>{of['gold']:,}</td><td>{of['found']:,}</td></tr>"
        for kind, of in rows
    )
    errors = "".join(f"<tr><td>{times:,}</td><td>{escape(text)}</td></tr>" for times, text in scores["errors"])
    common = (
        f'<h3>Commonest errors</h3><table class="text"><tr><th>times</th><th>error</th></tr>{errors}</table>'
        if errors
        else ""
    )
    return (
        f'<p class="soft">Entities in {escape(scores["text"])}, by type; one counts if type, first and last token are '
        f"right.</p>{page.add([charts.f1_by_type(scores['types'])], wide=True)}<table>{head}{table}</table>{common}"
    )


def _confusion(contents: Contents, page: _Charts) -> str:
    confusion = contents.run.confusion
    if confusion is None or not any(map(any, confusion["counts"])):
        return ""
    about = (
        "Entities by type. The shade is the share of the row. The row “nothing” counts what was invented, "
        "the column “nothing” what was missed."
    )
    chart = charts.confusion(confusion["types"], confusion["rows"], confusion["columns"], confusion["counts"])
    return f'<p class="soft">{about}</p>{page.add([chart], wide=True)}'


def _audit(contents: Contents) -> str:
    audit = contents.run.audit
    if audit is None:
        return _missing("No audit.json here. Compare frozen values and write one: describe_run(run_folder, audit=...).")
    counts = [
        ("frozen values", audit.get("frozen_compared", 0), audit.get("frozen_moved", 0)),
        ("rows that learn", audit.get("learned_rows", 0), audit.get("learned_rows_moved", 0)),
    ]
    rows = "".join(f"<tr><td>{name}</td><td>{total:,}</td><td>{moved:,}</td></tr>" for name, total, moved in counts)
    head = "<tr><th></th><th>compared</th><th>moved</th></tr>"
    return f"<p>Compared bit by bit, before and after training.</p><table>{head}{rows}</table>"


def _rows(contents: Contents) -> list[tuple[str, Recorded]]:
    return [(name, recorded) for name, recorded in contents.record.items() if recorded.kind == "rows"]


def _missing(text: str) -> str:
    return f'<p class="missing">{escape(text)}</p>'


def _rest(count: int) -> str:
    return _missing(f"{count - _MOST_CHARTS} more are not drawn.") if count > _MOST_CHARTS else ""
