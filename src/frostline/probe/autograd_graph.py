"""The autograd graph of a computation, walked from its output back to its leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def backward_nodes(node: Any) -> Iterator[Any]:
    """Yield `node` and every node that its gradient reaches, each once; nothing for None, the `grad_fn` of a leaf."""
    seen = {None}
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def backward_leaves(node: Any) -> list[Tensor]:
    """Return the leaf tensors that the gradient of `node` reaches; none for None."""
    return [node.variable for node in backward_nodes(node) if hasattr(node, "variable")]


def next_sequence_number() -> int:
    """Return the number of the next node: nodes that this thread makes from here on have it or a higher one."""
    # A throw-away node is the only way to read autograd's counter; nodes of an earlier graph have lower numbers.
    with torch.enable_grad():
        node: Any = torch.ones((), requires_grad=True).clone().grad_fn
    return int(node._sequence_nr())
