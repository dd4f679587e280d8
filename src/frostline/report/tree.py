"""What learns, as a tree of modules that open on a click: each tensor with its verdict, reason and line of code.

The verdicts come from the explanation (`fl.explain`) if the run folder has one, else from the plan. All text from the
run is escaped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from frostline.probe.explain.verdicts import FROZEN, FROZEN_BY_PLAN, LEARNS, LEARNS_IN_PART, TIED

_QUIET = (LEARNS, LEARNS_IN_PART, FROZEN_BY_PLAN, FROZEN)  # in the order of the legend, after the alarms
_SMALL = 30  # a model with no more tensors than this is shown open


@dataclass(frozen=True)
class Leaf:
    """One tensor of the model."""

    name: str
    verdict: str
    reason: str = ""
    where: str = ""
    shape: str = ""
    learned: int = 0
    total: int = 0

    @property
    def alarm(self) -> bool:
        """Whether it does not train as intended."""
        return self.verdict not in _QUIET


@dataclass
class _Module:
    modules: dict[str, _Module] = field(default_factory=dict)
    leaves: list[tuple[str, Leaf]] = field(default_factory=list)

    def all(self) -> list[Leaf]:
        inner = [leaf for module in self.modules.values() for leaf in module.all()]
        return [*(leaf for _, leaf in self.leaves), *inner]


def leaves(plan: dict[str, Any] | None, explanation: dict[str, Any] | None) -> list[Leaf]:
    """Return the tensors of a plan, an explanation, or both, in the plan's order first.

    Args:
        plan: `Plan.to_dict()`.
        explanation: `Explanation.to_dict()`.

    Example:
        >>> plan = {"tensors": {"w": {"shape": [9, 2], "learns": "rows", "count": 3, "learned": 6, "total": 18}}}
        >>> [(leaf.name, leaf.verdict, leaf.reason) for leaf in leaves(plan, None)]
        [('w', 'learns in part', '3 of 9 rows')]
    """
    planned: dict[str, Any] = (plan or {}).get("tensors", {})
    findings = explanation or {}
    found = []
    for name in dict.fromkeys([*planned, *findings]):
        leaf = _planned(name, planned[name]) if name in planned else Leaf(name, "")
        found.append(_explained(leaf, findings[name]) if name in findings else leaf)
    return found


def tree(found: list[Leaf]) -> str:
    """Return the tree as HTML."""
    root = _Module()
    for leaf in found:
        *path, last = leaf.name.split(".")
        module = root
        for part in path:
            module = module.modules.setdefault(part, _Module())
        module.leaves.append((last, leaf))
    return f'<div class="tree">{_children(root, len(found) <= _SMALL, top=True)}</div>'


def legend(found: list[Leaf]) -> str:
    """Return the verdicts that occur and how often, worst first, as HTML."""
    counts = Counter(leaf.verdict for leaf in found)
    order = sorted(counts, key=lambda verdict: _QUIET.index(verdict) if verdict in _QUIET else -1)
    items = (f'<span class="key">{_dot(verdict)}{counts[verdict]:,} {escape(verdict)}</span>' for verdict in order)
    return f'<p class="legend">{"".join(items)}</p>'


def _planned(name: str, tensor: dict[str, Any]) -> Leaf:
    shape, learns = tensor.get("shape", []), tensor.get("learns", "")
    most = shape[0] if learns == "rows" and shape else tensor.get("total", 0)
    verdict = {"everything": LEARNS, "nothing": FROZEN_BY_PLAN}.get(learns, LEARNS_IN_PART)
    reasons = [
        f"{tensor['count']:,} of {most:,} {learns}" if tensor.get("count") is not None else "",
        _tied(tensor),
        tensor.get("note", ""),
    ]
    sizes = " × ".join(f"{size:,}" for size in shape) or "scalar"
    reason = "; ".join(reason for reason in reasons if reason)
    return Leaf(name, verdict, reason, "", sizes, tensor.get("learned", 0), tensor.get("total", 0))


def _explained(leaf: Leaf, finding: dict[str, Any]) -> Leaf:
    """Return `leaf` with the verdict of a finding; its reason, the verdicts of groups of rows, tied names and notes."""
    groups = [f"{count:,} {verdict}" for verdict, count in (finding.get("groups") or {}).items()]
    notes = [note for note in finding.get("notes") or [] if note != TIED]
    reasons = [finding.get("reason"), ", ".join(groups), _tied(finding), *notes]
    reason = "; ".join(str(reason) for reason in reasons if reason)
    verdict = str(finding["verdict"])
    learned = leaf.learned if verdict in (LEARNS, LEARNS_IN_PART) else 0  # as the plan has it, if true
    return replace(leaf, verdict=verdict, reason=reason, where=str(finding.get("where") or ""), learned=learned)


def _tied(tensor: dict[str, Any]) -> str:
    return f"tied to {', '.join(map(str, tensor['tied']))}" if tensor.get("tied") else ""


def _children(module: _Module, small: bool, top: bool = False) -> str:
    tensors = "".join(_tensor(name, leaf) for name, leaf in module.leaves)
    return tensors + "".join(_node(name, inner, small, top) for name, inner in module.modules.items())


def _node(name: str, module: _Module, small: bool, top: bool) -> str:
    """Return a module and its content: open in a small model, at the top, and around an alarm."""
    while len(module.modules) == 1 and not module.leaves:  # a chain of modules is shown as one
        ((inner, module),) = module.modules.items()
        name = f"{name}.{inner}"
    found = module.all()
    alarms = [leaf for leaf in found if leaf.alarm]
    learned, total = sum(leaf.learned for leaf in found), sum(leaf.total for leaf in found)
    verdicts = list(dict.fromkeys(leaf.verdict for leaf in (alarms or found)))
    dots = "".join(_dot(verdict) for verdict in verdicts)
    summary = f"{learned:,} of {total:,} parameters learn" if total else f"{len(found)} tensors"
    if alarms:
        summary += f", {len(alarms)} alarm{'s' * (len(alarms) > 1)}"
    share = 100 * learned / total if total else 0.0
    fill = f'<i style="width:{share:.1f}%"></i>' if learned else ""
    bar = f'<span class="share">{fill}</span>' if total else ""
    is_open = " open" if alarms or small or top else ""
    return (
        f'<details{is_open}><summary>{dots}<b>{escape(name)}</b>{bar}<span class="detail">{summary}</span></summary>'
        f"{_children(module, small)}</details>"
    )


def _tensor(name: str, leaf: Leaf) -> str:
    where = f"<code>{escape(leaf.where)}</code>" if leaf.where else ""
    reason = f'<span class="detail">{escape(leaf.reason)}</span>' if leaf.reason else ""
    return (
        f'<div class="tensor" title="{escape(leaf.name)}">{_dot(leaf.verdict)}<span>{escape(name)}</span>'
        f'<span class="shape">{escape(leaf.shape)}</span>'
        f'<span class="verdict {_class(leaf.verdict)}">{escape(leaf.verdict)}</span>{reason}{where}</div>'
    )


def _dot(verdict: str) -> str:
    return f'<i class="dot {_class(verdict)}"></i>'


def _class(verdict: str) -> str:
    return verdict.replace(" ", "-") if verdict in _QUIET else "alarm"
