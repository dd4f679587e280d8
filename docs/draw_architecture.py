"""Draw the rooms of frostline and who imports whom, from the code itself, as docs/architecture.svg.

A room is a folder of the package, or a file directly in it. An arrow runs from a room to one that it imports; if a
longer path of arrows leads there as well, the direct arrow is left out. The rooms that nearly all others import
(errors, files, printing) lie below them as the ground.

Run:    python docs/draw_architecture.py
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Mapping
from html import escape
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "frostline"
PICTURE = Path(__file__).resolve().with_name("architecture.svg")
GROUND = ("errors", "files", "printing")

Graph = dict[str, set[str]]

WIDTH, HEIGHT, GAP, FLOOR, MARGIN = 236, 98, 26, 46, 24  # of a box, between boxes, between floors, in pixels
LETTERS = 38  # of a caption's line


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Return the dotted name of every module, without the package's own name, and its file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path = PACKAGE) -> Graph:
    """Return which files import which: those inside functions and for type checkers count as well.

    A name that an `__init__` hands on counts as an import of the file that it comes from. The `__init__` files
    themselves, which import what they hand on, are left out.
    """
    files = modules(package)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    faces = {name for name, path in files.items() if path.name == "__init__.py"}

    def imported(tree: ast.AST) -> Iterable[tuple[str, str, str]]:
        """Yield (module, name, the name that it gets here) of each import from the package."""
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package.name:
                for alias in node.names:
                    yield ".".join((node.module or "").split(".")[1:]), alias.name, alias.asname or alias.name

    def file_of(module: str, name: str) -> str:
        if module in faces:
            for source, original, here in imported(trees[module]):
                if here == name and (source, original) != (module, name):
                    return file_of(source, original)
        inside = f"{module}.{name}".strip(".")
        return inside if inside in files else module

    users = files.keys() - faces
    graph = {user: {file_of(module, name) for module, name, _ in imported(trees[user])} for user in users}
    return {user: used - {user, ""} for user, used in graph.items()}


def folders(files: Graph) -> Graph:
    """Return which folders import which; a file directly in the package is a room of its own and counts as one."""

    def folder(file: str) -> str:
        return file.rpartition(".")[0] or file

    graph: Graph = {}
    for user, used in files.items():
        graph.setdefault(folder(user), set()).update(folder(file) for file in used)
    return {user: used - {user} for user, used in graph.items()}


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of nodes that import each other, directly or in a circle.

    Example:
        >>> circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})
        [['b', 'c']]
    """
    reach = {node: reachable(graph, node) for node in graph}
    groups = {frozenset([node, *(other for other in reach[node] if node in reach.get(other, ()))]) for node in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def reachable(graph: Graph, start: str) -> set[str]:
    """Return everything that `start` imports, directly or not."""
    found: set[str] = set()
    ahead = list(graph.get(start, ()))
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            ahead += graph.get(node, ())
    return found


def rooms(files: Graph) -> Graph:
    """Return which rooms import which: the top folders of the package, and the files beside them."""
    graph: Graph = {}
    for user, used in files.items():
        graph.setdefault(user.split(".")[0], set()).update(file.split(".")[0] for file in used)
    return {user: used - {user} for user, used in graph.items() if user != "__main__"}


def floors(graph: Graph) -> dict[str, int]:
    """Return the floor of each room: one above the highest that it imports."""
    found: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((floor(used) for used in graph[room]), default=-1)
        return found[room]

    for room in graph:
        floor(room)
    return found


def draw(package: Path = PACKAGE) -> str:
    """Return the picture as SVG, the same text for the same imports."""
    files, graph = modules(package), rooms(imports(package))
    upper = {room: used - set(GROUND) for room, used in graph.items() if room not in GROUND}
    direct = {
        room: {other for other in used if not any(other in reachable(upper, way) for way in used - {other})}
        for room, used in upper.items()
    }
    lines = _in_order(direct, floors(upper))
    width = max(len(line) for line in lines) * (WIDTH + GAP) - GAP + 2 * MARGIN
    corners = {}
    for level, line in enumerate(lines):
        left = (width - len(line) * (WIDTH + GAP) + GAP) / 2
        for index, room in enumerate(line):
            corners[room] = (left + index * (WIDTH + GAP), MARGIN + level * (HEIGHT + FLOOR))
    bottom = MARGIN + len(lines) * (HEIGHT + FLOOR)
    body = [_arrow(corners, room, other) for room in sorted(direct) for other in sorted(direct[room])]
    for room, (x, y) in sorted(corners.items()):
        body += _box(x, y, WIDTH, room, _contents(files, room), _caption(files[room]))
    body += _box(MARGIN, bottom, width - 2 * MARGIN, ", ".join(GROUND), "the ground: any room may import these", [])
    return "\n".join([*_head(width, bottom + 70), *body, "</svg>", ""])


def _in_order(direct: Graph, level: Mapping[str, int]) -> list[list[str]]:
    """Return the rooms of each floor, the top one first, each room near the middle of those that import it."""
    lines: list[list[str]] = []
    for floor in range(max(level.values()), -1, -1):
        at = {room: (index + 0.5) / len(line) for line in lines for index, room in enumerate(line)}

        def middle(room: str, at: Mapping[str, float] = at) -> float:
            above = [at[user] for user in at if room in direct[user]]
            return sum(above) / len(above) if above else 0.5

        lines.append(sorted(sorted(room for room in level if level[room] == floor), key=middle))
    return lines


def _contents(files: Mapping[str, Path], room: str) -> str:
    inside = [name for name, path in files.items() if name.startswith(f"{room}.") and path.name != "__init__.py"]
    inner = sorted({name.split(".")[1] for name in inside if name.count(".") > 1})
    if not inside:
        return "one file"
    return f"{len(inside)} files" + (f": {', '.join(inner)}" if inner else "")


def _caption(path: Path) -> list[str]:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    lines = textwrap.wrap(doc.split("\n\n")[0], LETTERS)
    return lines[:3] if len(lines) <= 3 else [*lines[:2], f"{lines[2].rstrip(',')} ..."]


def _head(width: float, height: float) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif">',
        "<title>The rooms of frostline; an arrow runs from a room to one that it imports</title>",
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#5b7a94"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#fbfcfd"/>',
    ]


def _arrow(corners: Mapping[str, tuple[float, float]], room: str, other: str) -> str:
    """Return the arrow between two rooms; past the floors between them it runs through the nearest gap."""
    (x, y), (to_x, to_y) = corners[room], corners[other]
    points = [(x + WIDTH / 2, y + HEIGHT)]
    for top in sorted({top for _, top in corners.values() if y < top < to_y}):
        edges = [left - GAP / 2 for left, at in corners.values() if at == top]
        gap = min([*edges, max(edges) + WIDTH + GAP], key=lambda gap: abs(gap - (x + to_x + WIDTH) / 2))
        points += [(gap, top), (gap, top + HEIGHT)]
    points.append((to_x + WIDTH / 2, to_y - 2))
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (from_x, from_y), (x, y) in pairwise(points):
        bend = (y - from_y) / 2
        path += f"C{from_x:g} {from_y + bend:g} {x:g} {y - bend:g} {x:g} {y:g}"
    return f'<path d="{path}" fill="none" stroke="#5b7a94" stroke-width="1.3" marker-end="url(#tip)"/>'


def _box(x: float, y: float, width: float, name: str, contents: str, caption: list[str]) -> list[str]:
    height = HEIGHT if caption else 46
    lines = [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height}" rx="6" fill="#e8f0f7" stroke="#5b7a94"/>',
        f'<text x="{x + 10:g}" y="{y + 20:g}" font-size="15" font-weight="bold" fill="#17324a">{escape(name)}</text>',
        f'<text x="{x + 10:g}" y="{y + 36:g}" font-size="10" fill="#5b7a94">{escape(contents)}</text>',
    ]
    for index, line in enumerate(caption):
        lines.append(f'<text x="{x + 10:g}" y="{y + 53 + 14 * index:g}" font-size="11">{escape(line)}</text>')
    return lines


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(f"{PICTURE.name}: {len(rooms(imports()))} rooms, {len(imports())} files")
