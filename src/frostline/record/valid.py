"""Which files of a run folder hold JSON, and what each must hold, as far as the report reads it."""

from __future__ import annotations

from typing import Any

from frostline.probe.explain.verdicts import VERDICTS

ABOUT, PLAN, EXPLANATION, AUDIT = "about.json", "plan.json", "explanation.json", "audit.json"
CONFUSION, SCORES, PATH, GRAPH = "confusion.json", "scores.json", "path.json", "graph.json"
HOLDS = {
    ABOUT: "a title and facts",
    PLAN: "what Plan.to_dict() gives",
    EXPLANATION: "what Explanation.to_dict() gives",
    AUDIT: "the counts frozen_compared, frozen_moved, learned_rows and learned_rows_moved",
    PATH: "a name, its end, the index of the cut, and calls with call, where, source and gradient",
    GRAPH: "nodes, each with name, call, where and inputs, names of other nodes",
    SCORES: "a text, types and all with precision, recall, f1, gold and found, and errors, pairs of (times, text)",
    CONFUSION: "types, the titles of rows and columns, and for T types T + 1 rows of T + 1 counts",
}


def is_valid(name: str, value: Any) -> bool:
    """Return whether `value` is valid content of the file `name`, as far as the report reads it."""
    if not isinstance(value, dict):
        return False
    if name == ABOUT:
        return isinstance(value.get("facts", {}), dict)
    if name == AUDIT:
        return _are_counts(value, "frozen_compared", "frozen_moved", "learned_rows", "learned_rows_moved")
    if name == EXPLANATION:
        return all(_is_finding(finding) for finding in value.values())
    if name == CONFUSION:
        return _is_confusion(value)
    if name == PATH:
        return (
            isinstance(value.get("name"), str)
            and isinstance(value.get("end"), str)
            and (value.get("cut") is None or _are_counts(value, "cut"))
            and _are_calls(value.get("calls"))
        )
    if name == GRAPH:
        return _are_nodes(value.get("nodes"))
    if name == SCORES:
        return _are_scores(value)
    tensors = value.get("tensors")
    return (
        isinstance(tensors, dict)
        and _are_counts(value, "learned", "total")
        and all(_is_planned(tensor) for tensor in tensors.values())
    )


def _is_finding(finding: Any) -> bool:
    return (
        isinstance(finding, dict)
        and finding.get("verdict") in VERDICTS
        and isinstance(finding.get("notes") or [], list)
        and isinstance(finding.get("tied") or [], list)
        and isinstance(finding.get("groups") or {}, dict)
        and _are_counts(finding.get("groups") or {})
    )


def _is_planned(tensor: Any) -> bool:
    return (
        isinstance(tensor, dict)
        and _are_counts(tensor, "learned", "total")
        and isinstance(tensor.get("shape"), list)
        and _are_counts(dict(enumerate(tensor["shape"])))
        and (tensor.get("count") is None or _are_counts(tensor, "count"))
        and isinstance(tensor.get("tied") or [], list)
    )


def _is_confusion(value: dict[str, Any]) -> bool:
    types, counts = value.get("types"), value.get("counts")
    return (
        isinstance(types, list)
        and all(isinstance(text, str) for text in [*types, value.get("rows"), value.get("columns")])
        and isinstance(counts, list)
        and len(counts) == len(types) + 1
        and all(
            isinstance(row, list) and len(row) == len(counts) and _are_counts(dict(enumerate(row))) for row in counts
        )
    )


def _are_scores(value: dict[str, Any]) -> bool:
    types, errors = value.get("types"), value.get("errors")
    return (
        isinstance(value.get("text"), str)
        and isinstance(types, dict)
        and all(map(_is_score, [*types.values(), value.get("all")]))
        and isinstance(errors, list)
        and all(isinstance(e, list) and len(e) == 2 and type(e[0]) is int and isinstance(e[1], str) for e in errors)
    )


def _are_calls(calls: Any) -> bool:
    return isinstance(calls, list) and all(
        isinstance(call, dict)
        and isinstance(call.get("call"), str)
        and isinstance(call.get("where") or "", str)
        and isinstance(call.get("source"), str)
        and isinstance(call.get("gradient"), bool)
        for call in calls
    )


def _are_nodes(nodes: Any) -> bool:
    return isinstance(nodes, list) and all(
        isinstance(node, dict)
        and isinstance(node.get("inputs"), list)
        and all(isinstance(text, str) for text in (node.get("name"), node.get("call"), *node["inputs"]))
        and isinstance(node.get("where") or "", str)
        for node in nodes
    )


def _is_score(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _are_counts(value, "gold", "found")
        and all(
            type(value.get(name)) in (int, float) and 0 <= value[name] <= 1 for name in ("precision", "recall", "f1")
        )
    )


def _are_counts(values: dict[Any, Any], *names: str) -> bool:
    """Return whether the values of `names`, of all keys if no name is given, are integers, 0 or more."""
    found = [values.get(name) for name in names] if names else list(values.values())
    return all(type(value) is int and value >= 0 for value in found)
