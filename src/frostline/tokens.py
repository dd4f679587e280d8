"""New tokens for a language model: its table and its head grow by some rows, and only these rows learn.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    n  tokens that are listed

The idea: grow the tensors where they are (vocabulary.py), and plan for the new rows alone. Nothing is drawn at random:
the same call on the same model gives the same bits, and what was learned fits there. transformers is never imported;
any model with `get_input_embeddings()` will do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from frostline.errors import SelectionError
from frostline.partial import Plan, Selection, rows, train_only
from frostline.partial.checks import refuse_wrapped
from frostline.resize_embeddings import follow, grow, put, refuse_to_grow, tables, whole

_HALF = (torch.bfloat16, torch.float16)
_AT_A_TIME = 4096  # rows


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
        model: A model with `get_input_embeddings()` and, if it has a head, `get_output_embeddings()`: those of
            transformers, plain or inside a PeftModel. The table grows in place, with a tied or an untied head, the
            head's bias, `final_logits_bias`, and every `vocab_size` of the configuration.
        tokenizer: The tokenizer that goes with it. Tokens that it does not know are added to it.
        tokens: What is to learn, each once. A token that tokenizer and model have already keeps its row as its start.
            `AddedToken` objects are taken too.
        init: Where the rows of new tokens start. "pieces": at the mean of the rows of the pieces into which the
            tokenizer splits the token's text without knowing it as a token; pieces that are unknown do not count, and
            without any it is "mean". "mean": at the mean of all rows. Or values for the table, shape (n, D), one row
            for each listed token, known ones included; an untied head and a bias then start from the pieces.
        special: Add new tokens as special ones: `decode(skip_special_tokens=True)` leaves them out, and no normalizer
            (lower case) touches them.
        pad_to_multiple_of: Round the rows of the table up to a multiple of it. A table with rows to spare is not grown
            for want of tokens, and never shrunk. Rows without a token hold the mean and are frozen.
        also: What else learns, as for `train_only`, such as `{"*lora_*": fl.everything}`. An exact name in it takes
            the place of what this function would choose.

    Returns:
        The plan. Rows of a bfloat16 or float16 table learn in float32. Make the optimizer from it, or give the model to
        a trainer.

    Raises:
        SelectionError: The tokens, `init` or `pad_to_multiple_of` cannot be meant.
        PartialTensorError: The model's table cannot grow where it is. Nothing has been changed then.
        PatternError: A name in `also` fits no parameter; the rows have been added then, and a call with another name
            goes on from there.

    Cost: one copy of the table, and of an untied head, when they grow; then that of `train_only`.

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
        >>> torch.equal(table[4], table[[1, 3]].mean(0))  # where it starts: the mean of its pieces
        True
    """
    texts = _texts(tokens)
    refuse_wrapped(model)
    found, known = tables(model), _vocabulary(tokenizer)
    before = len(found[0].tensor)
    _refuse_init(init, len(texts), found[0].tensor)
    _refuse_padding_token(texts, known, model.get_input_embeddings())  # type: ignore[operator]
    new = [token for token, text in zip(tokens, texts, strict=True) if text not in known]
    refuse_to_grow(model, found, _rounded(max(before, len(tokenizer) + len(new)), pad_to_multiple_of))
    pieces = [[] if isinstance(init, str) and init == "mean" else _pieces(tokenizer, text) for text in texts]

    tokenizer.add_tokens(new, special_tokens=special)
    ids = _ids(tokenizer, texts)
    size = _rounded(max(before, len(tokenizer), max(ids) + 1), pad_to_multiple_of)
    fresh = [k for k, text in enumerate(texts) if text not in known or ids[k] >= before]
    with torch.no_grad():
        for one in found:
            mean, starts = _starts(whole(one), pieces)
            given = isinstance(init, Tensor) and one is found[0]
            chosen = range(len(texts)) if given else fresh
            grow(one, size, mean)
            put(one, {ids[k]: cast(Tensor, init)[k] if given else starts[k] for k in chosen})
    follow(model, before, size)
    ours = {one.names[0]: rows(ids, dtype=torch.float32 if one.tensor.dtype in _HALF else None) for one in found}
    return train_only(model, {**ours, **(also or {})})


def _texts(tokens: Sequence[Any]) -> list[str]:
    """The texts of the tokens, `AddedToken` or str."""
    if isinstance(tokens, str) or not isinstance(tokens, Sequence):
        raise TypeError(f"tokens: {tokens!r} is no list. Pass a list of texts, such as ['<tool>'].")
    texts = [getattr(token, "content", token) for token in tokens]
    if wrong := [text for text in texts if not isinstance(text, str) or not text]:
        raise SelectionError(f"tokens: {wrong[0]!r} is no token. Pass texts of one character or more.")
    if not texts:
        raise SelectionError("tokens: the list is empty, so nothing would learn. List at least one token.")
    if repeated := [text for text, count in Counter(texts).items() if count > 1]:
        raise SelectionError(f"tokens: listed more than once: {', '.join(map(repr, repeated))}. List each token once.")
    return texts


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    if not hasattr(tokenizer, "get_vocab"):
        raise TypeError(
            f"tokenizer: a {type(tokenizer).__name__} has no get_vocab(). Of a processor pass its .tokenizer."
        )
    return cast(dict[str, int], tokenizer.get_vocab())


def _ids(tokenizer: Any, texts: list[str]) -> list[int]:
    known = _vocabulary(tokenizer)
    if missing := [text for text in texts if text not in known]:
        raise SelectionError(
            f"tokens: the tokenizer does not take {missing[0]!r} as it stands. Spell it in its own way."
        )
    return [known[text] for text in texts]


def _refuse_init(init: object, count: int, table: Tensor) -> None:
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


def _refuse_padding_token(texts: list[str], known: dict[str, int], embedding: nn.Module) -> None:
    padding = getattr(embedding, "padding_idx", None)
    for text in texts:
        if padding is not None and known.get(text) == padding:
            raise SelectionError(f"tokens: {text!r} is the padding token, which gets no gradient. Leave it out.")


def _rounded(size: int, multiple: int | None) -> int:
    if multiple is None:
        return size
    if not isinstance(multiple, int) or multiple < 1:
        raise SelectionError(f"pad_to_multiple_of: {multiple!r} is no multiple. Pass a whole number from 1, or None.")
    return -(-size // multiple) * multiple


def _pieces(tokenizer: Any, text: str) -> list[int]:
    """Ids of what the tokenizer splits `text` into when it does not know it as a token; unknown pieces left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:  # past the added tokens, among which `text` may be already
        plain = backend.normalizer.normalize_str(text) if backend.normalizer else text
        words = backend.pre_tokenizer.pre_tokenize_str(plain) if backend.pre_tokenizer else [(plain, None)]
        ids = [token.id for word, _ in words for token in backend.model.tokenize(word)]
    return [i for i in ids if i != tokenizer.unk_token_id]


def _starts(table: Tensor, pieces: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The mean of all rows of `table` (V, *), shape (*), and the mean of each list of rows, shape (n, *)."""
    dtype = torch.promote_types(table.dtype, torch.float32)
    sums = [part.sum(0, dtype=dtype) for part in table.split(_AT_A_TIME)]  # a sum copies half precision to float32
    mean = torch.stack(sums).sum(0) / len(table)
    inside = [[i for i in ids if i < len(table)] for ids in pieces]
    return mean, torch.stack([table[ids].mean(0, dtype=dtype) if ids else mean for ids in inside])
