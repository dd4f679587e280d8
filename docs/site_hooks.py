"""What the site shows beside docs/: the README as first page, other pages of the root, examples, the commands' help.

MkDocs calls `on_files` and `on_page_markdown`; mkdocs.yml names this file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from frostline.cli import make_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
HELP = "<!-- the help of every command -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the project's root, and the examples as they are."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=inside_docs((ROOT / source).read_text(encoding="utf-8"))))
    for example in sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")):
        files.append(File.generated(config, f"examples/{example.name}", abs_src_path=str(example)))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Let links to the examples stay inside the site, and put in the help of the commands."""
    return markdown.replace("](../examples/", "](examples/").replace(HELP, "\n".join(help_of(make_parser())))


def inside_docs(text: str) -> str:
    """Return a page of the root with its links as they are seen from docs/.

    Example:
        >>> inside_docs("[limits](docs/limits.md), [changes](CHANGELOG.md), [decisions](docs/decisions)")
        '[limits](limits.md), [changes](changelog.md), [decisions](decisions/0001-two-parts-behind-one-name.md)'
    """
    text = text.replace("](docs/decisions)", "](docs/decisions/0001-two-parts-behind-one-name.md)")
    text = text.replace("](examples)", "](docs/examples.md)")
    for source, page in PAGES.items():
        text = text.replace(f"]({source})", f"]({page})")
    return re.sub(r"\]\(docs/", "](", text.replace('src="docs/', 'src="'))


def help_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the help of a parser and of all its subcommands, as markdown."""
    yield f"## `{parser.prog}`\n\n```text\n{parser.format_help().rstrip()}\n```\n"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from help_of(child)
