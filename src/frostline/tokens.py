"""Add tokens to a language model: its embedding and its head get new rows, and only these rows learn.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    n  listed tokens

The idea: enlarge the tensors in place (resize_embeddings.py), and let `train_only` choose the new rows. No random
number is drawn: the same call on the same model gives the same bits, so learned rows can be loaded into it again.
transformers is not imported; any model with `get_input_embeddings()` works.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from frostline.errors import SelectionError
from frostline.partial import Plan, Selection, rows, train_only
from frostline.partial.checks import check_not_wrapped
from frostline.partial.model_tensors import State, state_of
from frostline.resize_embeddings import (
    check_resizable,
    find_tables,
    full_tensor,
    resize_,
    rows_restored_on_error,
    sizes_restored_on_error,
    update_configs,
    write_rows,
)

_HALF = (torch.bfloat16, torch.float16)
_BLOCK = 4096  # rows summed at a time


def add_tokens(
    model: nn.Module,
    tokenizer: Any,
    tokens: Sequence[str],
    *,
    init: Literal["pieces", "mean"] | Tensor = "pieces",
    special: bool = False,
    pad_to_multiple_of: int | None = None,
    also: Mapping[str, Selection] | None = None,
) -> Plan:
    """Add tokens to a tokenizer and a language model, and let their rows learn; everything else keeps every bit.

    Args:
        model: A model with `get_input_embeddings()` and, if it has a head, `get_output_embeddings()`: a transformers
            model, plain or inside a PeftModel. The embedding grows in place, as do a tied or untied head, the head's
            bias, `final_logits_bias`, and every `vocab_size` of the configuration.
        tokenizer: The model's tokenizer. Tokens that it does not know are added to it.
        tokens: The tokens that learn, each once: strings or `AddedToken` objects. A token that tokenizer and model
            already have starts from its present row.
        init: How the rows of new tokens are initialized. "pieces": the mean of the rows of the pieces into which the
            tokenizer splits the token's text while it does not know the token; unknown pieces are ignored, and if there
            are no others it is "mean". "mean": the mean of all rows. Or values for the embedding, shape (n, D), one row
            for each listed token, known ones included; an untied head and a bias then start from the pieces.
        special: Add new tokens as special tokens: `decode(skip_special_tokens=True)` omits them, and the normalizer
            (such as lower case) does not change them.
        pad_to_multiple_of: Round the number of rows up to a multiple of it. A table that already has spare rows is not
            enlarged; it is never shrunk. Rows without a token are set to the mean and frozen.
        also: What else learns, as for `train_only`, such as `{"*lora_*": fl.everything}`. An exact name in it overrides
            what this function would choose.

    Returns:
        The plan. Rows of a bfloat16 or float16 table learn in float32. Make the optimizer from it, or pass the model to
        a trainer.

    Raises:
        SelectionError: `tokens`, `init` or `pad_to_multiple_of` is invalid.
        PartialTensorError: The model's table cannot be enlarged in place.
        PatternError: A name in `also` matches no parameter.
            Whatever is raised, Ctrl-C included, model, configuration and tokenizer are as they were before.

    Cost: one copy of the table, and of an untied head, when they grow, beside the old ones until it returns; one of the
        tokenizer's vocabulary; then that of `train_only`.

    Example:
        >>> import frostline as fl
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"?": 0, "open": 1, "the": 2, "door": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=2, n_layer=1, n_head=1, n_positions=8))
        >>> plan = fl.add_tokens(model, tokenizer, ["open door"])
        >>> tokenizer("open door").input_ids, model.config.vocab_size, plan.learned
        ([4], 5, 2)
        >>> table = model.transformer.wte.weight
        >>> torch.equal(table[4], table[[1, 3]].mean(0))  # the initial row is the mean of its pieces
        True
    """
    texts = _texts(tokens)
    check_not_wrapped(model)
    tables, known = find_tables(model), _vocabulary(tokenizer)
    before = len(tables[0].tensor)
    _check_init(init, len(texts), tables[0].tensor)
    _check_not_padding(texts, known, model.get_input_embeddings())  # type: ignore[operator]
    new = [token for token, text in zip(tokens, texts, strict=True) if text not in known]
    # Everything that may fail is checked before the tokenizer changes.
    check_resizable(model, tables, _rounded_up(max(before, len(tokenizer) + len(new)), pad_to_multiple_of))
    pieces = [[] if isinstance(init, str) and init == "mean" else _pieces(tokenizer, text) for text in texts]

    with _tokenizer_restored_on_error(tokenizer), sizes_restored_on_error(model):
        tokenizer.add_tokens(new, special_tokens=special)
        ids = _ids(tokenizer, texts)
        size = _rounded_up(max(before, len(tokenizer), max(ids) + 1), pad_to_multiple_of)
        without_row = [k for k, text in enumerate(texts) if text not in known or ids[k] >= before]
        with rows_restored_on_error(tables, ids), torch.no_grad():
            for table in tables:
                mean, piece_means = _means(full_tensor(table), pieces)
                resize_(table, size, mean)
                if isinstance(init, Tensor) and table is tables[0]:
                    write_rows(table, dict(zip(ids, init, strict=True)))
                else:
                    write_rows(table, {ids[k]: piece_means[k] for k in without_row})
            update_configs(model, before, size)
            selections: dict[str, Selection] = {
                table.name: rows(ids, dtype=torch.float32 if table.tensor.dtype in _HALF else None) for table in tables
            }
            plan = train_only(model, {**selections, **(also or {})})
            for module, name in [owner for table in tables for owner in table.owners]:  # for save_learned
                cast(State, state_of(module)).tokens[name] = dict(zip(texts, ids, strict=True))
            return plan


@contextlib.contextmanager
def _tokenizer_restored_on_error(tokenizer: Any) -> Iterator[None]:
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


def _texts(tokens: Sequence[Any]) -> list[str]:
    """Return the texts of the tokens, `AddedToken` or str."""
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


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    if not hasattr(tokenizer, "get_vocab"):
        raise TypeError(
            f"tokenizer: a {type(tokenizer).__name__} has no get_vocab(). If it is a processor, pass its .tokenizer."
        )
    return cast(dict[str, int], tokenizer.get_vocab())


def _ids(tokenizer: Any, texts: list[str]) -> list[int]:
    known = _vocabulary(tokenizer)
    if missing := [text for text in texts if text not in known]:
        raise SelectionError(
            f"tokens: the tokenizer does not keep {missing[0]!r} as written. Pass the spelling that it uses."
        )
    return [known[text] for text in texts]


def _check_init(init: object, count: int, table: Tensor) -> None:
    if isinstance(init, Tensor):
        if not init.to(table.dtype).isfinite().all():
            raise SelectionError(
                f"init: holds NaN or Inf in {table.dtype}, which every logit would show. Pass values in its range."
            )
        if tuple(init.shape) != (count, *table.shape[1:]):
            raise SelectionError(
                f"init: shape {tuple(init.shape)}. Pass shape {(count, *table.shape[1:])}, "
                "one row for each listed token, known ones included."
            )
    elif not isinstance(init, str) or init not in ("pieces", "mean"):
        raise SelectionError(
            f"init: {init!r} is not known. Pass 'pieces', 'mean', or a tensor of one row for each token."
        )


def _check_not_padding(texts: list[str], known: dict[str, int], embedding: nn.Module) -> None:
    padding = getattr(embedding, "padding_idx", None)
    for text in texts:
        if padding is not None and known.get(text) == padding:
            raise SelectionError(f"tokens: {text!r} is the padding token, which gets no gradient. Leave it out.")


def _rounded_up(size: int, multiple: int | None) -> int:
    if multiple is None:
        return size
    if not isinstance(multiple, int) or multiple < 1:
        raise SelectionError(f"pad_to_multiple_of: expected an integer of 1 or more, or None, got {multiple!r}.")
    return -(-size // multiple) * multiple


def _pieces(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of the pieces into which the tokenizer splits `text` as ordinary text, without unknown ones."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:  # not through the tokenizer itself: `text` may already be one of its added tokens
        normalized = backend.normalizer.normalize_str(text) if backend.normalizer else text
        words = backend.pre_tokenizer.pre_tokenize_str(normalized) if backend.pre_tokenizer else [(normalized, None)]
        ids = [token.id for word, _ in words for token in backend.model.tokenize(word)]
    return [i for i in ids if i != tokenizer.unk_token_id]


def _means(table: Tensor, pieces: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return the mean of all rows of `table` (V, *), shape (*), and that of each list of rows, shape (n, *)."""
    dtype = torch.promote_types(table.dtype, torch.float32)
    # In blocks: a sum of half precision in float32 first makes a float32 copy of its input.
    sums = [block.sum(0, dtype=dtype) for block in table.split(_BLOCK)]
    mean = torch.stack(sums).sum(0) / len(table)
    # The tokenizer may have more ids than the table has rows.
    valid = [[i for i in ids if i < len(table)] for ids in pieces]
    return mean, torch.stack([table[ids].mean(0, dtype=dtype) if ids else mean for ids in valid])
