"""What is asked of a tokenizer: which tokens it knows, their ids, and the ids of the pieces of a text.

transformers is not imported: a tokenizer is anything with `get_vocab()`, `add_tokens()`, `unk_token_id`, and a call
that returns `input_ids`.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

from frostline.errors import SelectionError


def texts_of(tokens: Sequence[Any]) -> list[str]:
    """Return the texts of tokens, `AddedToken` or str; raise unless they are different texts."""
    if isinstance(tokens, str) or not isinstance(tokens, Sequence):
        raise TypeError(f"tokens: expected a list of strings, such as ['<tool>'], got {tokens!r}.")
    texts = [getattr(token, "content", token) for token in tokens]
    if wrong := [text for text in texts if not isinstance(text, str) or not text]:
        raise SelectionError(f"tokens: expected strings of one character or more, got {wrong[0]!r}.")
    if not texts:
        raise SelectionError("tokens: the list is empty, so nothing would learn. List at least one token.")
    if repeated := [text for text, count in Counter(texts).items() if count > 1]:
        raise SelectionError(f"tokens: listed more than once: {', '.join(map(repr, repeated))}. List each token once.")
    return texts


def vocabulary_of(tokenizer: Any) -> dict[str, int]:
    """Return text -> id of every token that the tokenizer knows."""
    if not hasattr(tokenizer, "get_vocab"):
        raise TypeError(
            f"tokenizer: a {type(tokenizer).__name__} has no get_vocab(). If it is a processor, pass its .tokenizer."
        )
    if not callable(tokenizer):
        raise TypeError(
            f"tokenizer: a {type(tokenizer).__module__.partition('.')[0]}.{type(tokenizer).__name__} cannot be called. "
            "Pass transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)."
        )
    return cast(dict[str, int], tokenizer.get_vocab())


def ids_of(known: dict[str, int], texts: list[str]) -> list[int]:
    """Return the ids of tokens that have been added; `known` is the vocabulary since."""
    if missing := [text for text in texts if text not in known]:
        raise SelectionError(
            f"tokens: the tokenizer does not keep {missing[0]!r} as written. Pass the spelling that it uses."
        )
    return [known[text] for text in texts]


def pieces_of_token(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of the pieces into which `text` is split as ordinary text, without unknown ones."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return pieces_of_text(tokenizer, text)
    # Not through the tokenizer itself: `text` may already be one of its added tokens.
    normalized = backend.normalizer.normalize_str(text) if backend.normalizer else text
    words = backend.pre_tokenizer.pre_tokenize_str(normalized) if backend.pre_tokenizer else [(normalized, None)]
    ids = [token.id for word, _ in words for token in backend.model.tokenize(word)]
    return [i for i in ids if i != tokenizer.unk_token_id]


def pieces_of_text(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of the tokens, added ones too, into which the tokenizer splits `text`, without unknown ones."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [i for i in ids if i != tokenizer.unk_token_id]


@contextlib.contextmanager
def tokenizer_restored_on_error(tokenizer: Any) -> Iterator[None]:
    """Run the block; if it raises, take back what it added to the tokenizer."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    state = None
    with contextlib.suppress(Exception):  # a backend with a part in Python cannot be saved, nor restored
        state = None if backend is None else backend.__getstate__()
    own = getattr(tokenizer, "__dict__", {})
    before = {name: _copied(value, {id(backend): backend}) for name, value in own.items()}
    try:
        yield
    except BaseException:
        if state is not None:
            backend.__setstate__(state)  # in place: others may hold it
        own.update(before)
        raise


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of `value`; itself if it cannot be copied, as a lock cannot."""
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        return value
