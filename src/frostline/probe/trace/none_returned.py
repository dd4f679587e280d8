"""Inputs for which the backward of a custom autograd.Function returns None: only that backward can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from frostline.probe.trace.provenance import indices_in
from frostline.probe.trace.source_line import SourceLine


class NoneReturned:
    """What backward passes have returned None for so far."""

    def __init__(self) -> None:
        self._noted: list[tuple[int, SourceLine]] = []

    def lines(self, mask: int) -> dict[int, list[SourceLine]]:
        """Return index of a parameter -> the line, for those of `mask` that got None."""
        found: dict[int, list[SourceLine]] = {}
        for lost, line in self._noted:
            for index in indices_in(lost & mask):
                found.setdefault(index, [line])
        return found

    def hook(self, gradients: Sequence[int], line: SourceLine | None) -> Callable[[Any, Any], None]:
        """Return a hook on the node of a Function.

        Args:
            gradients: For each of its inputs, the mask of the parameters that its gradient reaches.
            line: The line that applied the Function.
        """

        def note(returned: Any, given: Any) -> None:
            for mask, value in zip(gradients, returned, strict=False):
                if value is None and mask and line is not None:
                    self._noted.append((mask, line))

        return note
