"""How training goes, for whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.partial import Plan
    from frostline.tagger.vocabulary import Coverage


@dataclass(frozen=True)
class Epoch:
    """One pass over the training sentences: mean loss, F1 on dev (0 to 1), seconds, tokens trained on."""

    number: int
    loss: float
    dev_f1: float
    seconds: float
    tokens: int


class Watcher:
    """Is told how training goes; every method may be overridden, none must be."""

    def start(self, plan: Plan, coverage: Coverage) -> None:
        """Training is about to begin."""

    def resumed(self, history: Sequence[Epoch], tokens: int) -> None:
        """An interrupted training goes on after these epochs, and so many tokens of the next."""

    def batch(self, tokens: int) -> None:
        """One step was made, over so many tokens."""

    def epoch(self, epoch: Epoch) -> None:
        """One pass over the training sentences ended."""
