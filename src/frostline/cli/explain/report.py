"""Say what was found of a script's step: a table for each model on stderr, and a file."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from frostline.files import replacing

if TYPE_CHECKING:
    from frostline.probe import Explanation


def report(found: dict[str, Explanation], lines: list[str], json_file: Path | None, target: str) -> None:
    """Print the explanations, by the names of the models, and write them to a file.

    Args:
        found: Name of a model -> its explanation.
        lines: What else is to be said.
        json_file: Where to write what was found; None for nowhere.
        target: The script.
    """
    parts = [f"{name}\n{explanation}" for name, explanation in found.items()] + lines
    if not parts:
        parts = [f"{target}: in this process no module with parameters that learn has run, and no optimizer stepped."]
    if json_file is not None:
        try:
            with replacing(json_file) as file:
                tables = {name: explanation.to_dict() for name, explanation in found.items()}
                Path(file).write_text(json.dumps(tables, indent=1, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            parts.append(f"{json_file}: {error.strerror}. It was not written.")
    with contextlib.suppress(OSError, ValueError):  # stderr is closed, and the script goes on
        print("\nfrostline: " + "\n\n".join(parts) + "\n", file=sys.stderr)
