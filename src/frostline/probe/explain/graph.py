"""The graph of a pass: every call on a way from a parameter to the loss, and what it was computed from.

The idea: the provenance of the loss is this graph already; here its calls and parameters get names. TensorBoard groups
nodes by the parts of their names, so a parameter `lstm.weight` becomes the node `lstm/weight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from frostline.probe.trace.provenance import Provenance
from frostline.probe.trace.source_line import SourceLine

Node = dict[str, object]


def graph_of(loss: Provenance, calls: Mapping[Provenance, SourceLine | None], names: Sequence[str]) -> list[Node]:
    """Return the nodes of the graph, inputs before what is computed from them, as plain values for JSON.

    Args:
        loss: The provenance of the loss.
        calls: The line of each call that made a provenance, in the order in which they ran.
        names: The parameters, by their number in the masks.

    Returns:
        For each call and parameter `name`, `call`, `where` and `inputs`, names of other nodes.
    """
    reached, waiting = {loss}, [loss]
    while waiting:
        new = [parent for parent in waiting.pop().parents if parent not in reached]
        reached.update(new)
        waiting += new
    shown = {node: f"{number}_{line.call if line else 'call'}" for number, (node, line) in enumerate(calls.items())}
    shown = {node: name for node, name in shown.items() if node in reached}
    parameters = {node: names[node.value.bit_length() - 1].replace(".", "/") for node in reached if not node.parents}
    parameters = {node: name for node, name in parameters.items() if node.value and node not in calls}
    nodes: list[Node] = [
        {"name": name, "call": "parameter", "where": None, "inputs": []} for name in sorted(set(parameters.values()))
    ]
    for node, name in shown.items():
        inputs = sorted({each for parent in node.parents for each in _named(parent, shown, parameters)})
        line = calls[node]
        where = None if line is None else line.where
        nodes.append({"name": name, "call": name.partition("_")[2], "where": where, "inputs": inputs})
    return nodes


def _named(node: Provenance, shown: Mapping[Provenance, str], parameters: Mapping[Provenance, str]) -> list[str]:
    """Return the names of the nearest calls and parameters at or before `node`, past unions of several."""
    name = shown.get(node) or parameters.get(node)
    if name is not None:
        return [name]
    return [each for parent in node.parents for each in _named(parent, shown, parameters)]
