"""Tied weights look tied, and can be tied again, although a partial tensor is made at each use.

Libraries tell a tie by `head.weight is embed.weight`, and tie by `head.weight = embed.weight`. So while anything holds
the partial tensor of two parts, it is handed out again; and where FSDP2 is given the raw frozen part instead, the part
that learns with it is remembered.
"""

from __future__ import annotations

import weakref
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from frostline.partial.layout import Layout
from frostline.partial.tensor import PartialTensor

_alive: WeakKeyDictionary[Layout, weakref.ref[PartialTensor]] = WeakKeyDictionary()  # the last one of each, if held
_given: Any = WeakTensorKeyDictionary()  # sharded frozen part -> weak reference to its learned part, layout


def partial_tensor(frozen: Tensor, learned: Tensor, layout: Layout) -> PartialTensor:
    """The partial tensor of these parts: the one that somebody still holds, or else a new one."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not isinstance(learned, nn.Parameter):
        return PartialTensor.of(frozen, learned, layout)
    last = _alive.get(layout)
    held = None if last is None else last()
    if held is not None and held.frozen is frozen and held.learned is learned and held.is_current():
        return held
    made = PartialTensor.of(frozen, learned, layout)
    _alive[layout] = weakref.ref(made)
    return made


def remember_given(frozen: Tensor, learned: Tensor, layout: Layout) -> None:
    """Note that `frozen`, which is sharded, is handed out alone."""
    _given[frozen] = weakref.ref(learned), layout


def given_with(frozen: Tensor | None) -> tuple[nn.Parameter, Layout] | None:
    """The learned part and the layout that belong to a sharded frozen part which was handed out alone; None if none."""
    if frozen is None or frozen not in _given:
        return None
    reference, layout = _given[frozen]
    learned = reference()
    return None if learned is None else (learned, layout)
