"""What several actions of the tagger read from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(low: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `low` up."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} up")
        return number

    return whole_number
