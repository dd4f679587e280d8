"""What a tagger finds and what goes wrong, as the plain values that a run folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frostline.tagger.scoring.error_analysis import analyse
from frostline.tagger.scoring.scores import Score, score

_MOST_ERRORS = 20


def scored(
    text: str, sentences: Sequence[tuple[Sequence[str], Sequence[str]]], predicted: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return the arguments `scores` and `confusion` of `frostline.record.describe_run`.

    Args:
        text: The name of what was tagged.
        sentences: Tokens and right tags of each sentence.
        predicted: The predicted tags.

    Example:
        >>> found = scored("dev", [(["Oz", "is"], ["B-a", "O"])], [["O", "O"]])
        >>> found["scores"]["errors"], found["scores"]["all"]["gold"]
        ([[1, "missed    a: 'Oz'"]], 1)
    """
    tokens, gold = [list(words) for words, _ in sentences], [tags for _, tags in sentences]
    whole, errors = score(gold, predicted), analyse(tokens, gold, predicted)
    scores = {
        "text": text,
        "types": {kind: _values(of_type) for kind, of_type in whole.per_type.items()},
        "all": _values(whole),
        "errors": [[times, str(pair)] for times, pair in errors.frequent(_MOST_ERRORS)],
    }
    return {"scores": scores, "confusion": errors.confusion_table() | {"rows": f"gold in {text}"}}


def _values(of: Score) -> dict[str, float]:
    return {"precision": of.precision, "recall": of.recall, "f1": of.f1, "gold": of.gold, "found": of.predicted}
