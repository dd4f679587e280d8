"""The graph that autograd keeps of a computation, walked back to its leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def nodes_under(node: Any) -> Iterator[Any]:
    """`node` and every node that its gradient can reach, each once; none under None, the node of a leaf."""
    seen = {None}
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            yield one
            waiting += [following for following, _ in one.next_functions]


def leaves_under(node: Any) -> list[Tensor]:
    """The leaf tensors that the gradient of `node` can reach; none under None."""
    return [one.variable for one in nodes_under(node) if hasattr(one, "variable")]


def next_sequence_number() -> int:
    """Nodes made from here on, by this thread, have this number or a higher one."""
    with torch.enable_grad():
        node: Any = torch.ones((), requires_grad=True).clone().grad_fn
    return int(node._sequence_nr())
