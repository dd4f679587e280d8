"""How the API reference reads the project's docstrings; mkdocs.yml names this file.

`Cost:` and `Source:` are paragraphs here, whose further lines may be indented; `Example:` is `Examples:` in Google's
style.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_PARAGRAPH = re.compile(r"^(Cost|Source): (.*(?:\n[ \t]+\S.*)*)", re.M)


class Paragraphs(griffe.Extension):
    """Turn `Cost:` and `Source:` into paragraphs before the docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **context: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(docstring: str) -> str:
    r"""Return a docstring as the parser wants it.

    Example:
        >>> rewritten("Cost: a copy,\n    made once.\n\nExample:\n    >>> 1\n    1")
        '**Cost:** a copy,\nmade once.\n\nExamples:\n    >>> 1\n    1'
    """
    docstring = re.sub(r"^Example:$", "Examples:", docstring, flags=re.M)
    return _PARAGRAPH.sub(lambda found: f"**{found[1]}:** {_dedented(found[2])}", docstring)


def _dedented(text: str) -> str:
    first, *rest = text.split("\n")
    return "\n".join([first, *textwrap.dedent("\n".join(rest)).split("\n")]) if rest else first
