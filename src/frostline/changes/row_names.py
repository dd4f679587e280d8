"""The words or tokens of the rows of a table, where a tokenizer or a vocabulary lies beside the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path


def read_row_names(path: Path) -> list[str]:
    """Return the text of each id, by id, from the folder of a checkpoint; empty if nothing there says it.

    Read are `tokenizer.json`, `vocab.json`, `vocab.txt` and `words.txt` (a word in each line), the first that is there.
    """
    folder = path if path.is_dir() else path.parent
    for name, read in (
        ("tokenizer.json", _tokenizer),
        ("vocab.json", _json),
        ("vocab.txt", _lines),
        ("words.txt", _lines),
    ):
        try:
            if (folder / name).is_file():
                ids = read(folder / name)
                return [ids.get(number, "") for number in range(max(ids, default=-1) + 1)]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # the rows still have numbers
    return []


def _tokenizer(file: Path) -> dict[int, str]:
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((item[0], i) for i, item in enumerate(vocabulary))
    ids = {int(number): str(text) for text, number in pairs}
    return ids | {int(added["id"]): str(added["content"]) for added in content.get("added_tokens", [])}


def _json(file: Path) -> dict[int, str]:
    return {int(number): str(text) for text, number in json.loads(file.read_text(encoding="utf-8")).items()}


def _lines(file: Path) -> dict[int, str]:
    return dict(enumerate(file.read_text(encoding="utf-8").splitlines()))
