"""Add tokens to a language model: its embedding and its head get new rows, and only these rows learn.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    n  listed tokens

The idea: enlarge the tensors in place (resize_embeddings.py), start the new rows (starts.py), and let `train_only`
choose them. transformers is not imported; any model with `get_input_embeddings()` works.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.errors import SelectionError
from frostline.partial import Plan, Selection, rows, train_only
from frostline.partial.checks import check_not_wrapped
from frostline.partial.model_tensors import State, state_of
from frostline.partial.quantized import count_rows
from frostline.printing import listed
from frostline.resize_embeddings import (
    check_resizable,
    find_quantized,
    find_tables,
    full_tensor,
    is_head,
    resize_,
    rows_restored_on_error,
    sizes_restored_on_error,
    update_configs,
    write_rows,
)
from frostline.tokens.beside import (
    beside_restored_on_error,
    check_usable,
    dequantized,
    note_tokens,
    put_beside,
    share_beside,
)
from frostline.tokens.starts import Init, Start, check_values, mean_row, random_state_restored_on_error, starts_of
from frostline.tokens.tokenizer import ids_of, texts_of, tokenizer_restored_on_error, vocabulary_of

_HALF = (torch.bfloat16, torch.float16)
_NAME = ".new_tokens.weight"
_BESIDE = "beside a quantized table, also after fl.merge"


def add_tokens(
    model: nn.Module,
    tokenizer: Any,
    tokens: Sequence[str],
    *,
    init: Init | tuple[Init, Init] = "subwords",
    special: bool = False,
    pad_to_multiple_of: int | None = None,
    also: Mapping[str, Selection] | None = None,
) -> Plan:
    """Add tokens to a tokenizer and a language model, and let their rows learn; everything else keeps every bit.

    Args:
        model: A model with `get_input_embeddings()` and, if it has a head, `get_output_embeddings()`: a transformers
            model, plain or inside a PeftModel. The embedding grows in place, as do a tied or untied head, the head's
            bias, a second embedding of the same size (an encoder's and a decoder's), `final_logits_bias`, and every
            `vocab_size` of the configuration. Beside a quantized embedding or head the rows get a small float table,
            `new_tokens`, which stays there when merged; what is quantized keeps every bit.
        tokenizer: The model's tokenizer. Tokens that it does not know are added to it. Tokens that it knows and
            that are not listed, for which the model has no row, get one that starts in the same way and is frozen; the
            plan says so. (If `init` is a mapping or a tensor, it starts from subwords.)
        tokens: The tokens that learn, each once: strings or `AddedToken` objects. A token that tokenizer and model
            already have starts from its present row.
        init: How the rows of new tokens start, in float32, then rounded to the table's dtype:
            "subwords": the mean of the rows of the pieces into which the tokenizer splits the token's text while it
            does not know the token; unknown pieces are ignored, and if there are no others it is "mean".
            "mean": the mean of all rows.
            "normal": the mean plus a draw with 1e-9 of the covariance of the rows, as in transformers. The only one
            that draws random numbers, on the CPU, by torch's own generator.
            "zeros".
            A mapping of each listed token to a text: the mean of the rows of the tokens into which the tokenizer splits
            that text; of one token, a copy.
            A tensor of shape (n, D), one row for each listed token. A mapping and a tensor also replace the rows of
            tokens that exist already. A tensor is for the embedding: an untied head and a bias start from subwords.
            A tuple of two of these: the second one is for an untied head and its bias.
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
        PartialTensorError: The model's table cannot be enlarged in place; or a table that it would leave out has a row
            for each token.
        PatternError: A name in `also` matches no parameter.
            Whatever is raised, Ctrl-C included, model, configuration and tokenizer are as they were before.

    Cost: one copy of the table, and of an untied head, when they grow, beside the old ones until it returns (of a
        quantized one a float copy); one of the tokenizer's vocabulary; then that of `train_only`.

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
        >>> fl.merge(model)
        >>> plan = fl.add_tokens(model, tokenizer, ["<shut>"], init={"<shut>": "door"})
        >>> table = model.transformer.wte.weight
        >>> torch.equal(table[5], table[3])  # a copy of "door"
        True
    """
    texts = texts_of(tokens)
    check_not_wrapped(model)
    tables, quantized, known = find_tables(model), find_quantized(model), vocabulary_of(tokenizer)
    before = count_rows(model.get_input_embeddings())  # type: ignore[operator]
    others = sorted((text for text, id in known.items() if id >= before and text not in texts), key=known.__getitem__)
    width = tables[0].tensor.shape[1] if tables else next(iter(quantized.values())).embedding_dim
    embedding, head = starts_of(init, texts, others, tokenizer, before, width)
    starts = [head if is_head(model, [module for module, _ in table.owners]) else embedding for table in tables]
    quantized_starts = [head if is_head(model, [module]) else embedding for module in quantized.values()]
    if isinstance(init, tuple) and head not in starts + quantized_starts:
        raise SelectionError("init: two starts, but the model has no head of its own: none, or a tied one. Pass one.")
    for table, start in zip(tables, starts, strict=True):
        if table.tensor.ndim > 1:
            check_values(start, table.tensor.shape, table.tensor.dtype, table.name)
    _check_not_padding(texts, known, model.get_input_embeddings())  # type: ignore[operator]
    new = [token for token, text in zip(tokens, texts, strict=True) if text not in known]
    # Everything that may fail is checked before the tokenizer changes.
    size = _rounded_up(max(before, len(tokenizer) + len(new)), pad_to_multiple_of)
    check_resizable(model, tables, size, also or {})
    dtype = tables[0].tensor.dtype if tables else None
    rows_now = {}
    for (name, module), start in zip(quantized.items(), quantized_starts, strict=True):
        check_usable(module, name)
        rows_now[name] = dequantized(module, name, dtype)
        check_values(start, rows_now[name].shape, rows_now[name].dtype, name)

    with (
        tokenizer_restored_on_error(tokenizer),
        beside_restored_on_error(quantized.values()),
        sizes_restored_on_error(model),
        random_state_restored_on_error(),
    ):
        tokenizer.add_tokens(new, special_tokens=special)
        ids = dict(zip(texts, ids_of(vocabulary_of(tokenizer), texts), strict=True))
        rows_needed = 1 + max([*ids.values(), *(known[text] for text in others)])
        size = _rounded_up(max(before, len(tokenizer), rows_needed), pad_to_multiple_of)
        without_row = [text for text in texts if text not in known or ids[text] >= before]

        def start_rows(start: Start, full: Tensor, mean: Tensor) -> dict[int, Tensor]:
            started = (texts if start.overwrites else without_row) + others
            values = start.rows_of(full, started, mean) if started else ()
            return {(ids | known)[text]: row for text, row in zip(started, values, strict=True)}

        with rows_restored_on_error(tables, list(ids.values())), torch.no_grad():
            for table, start in zip(tables, starts, strict=True):
                full = full_tensor(table)
                mean = mean_row(full)
                values = start_rows(start, full, mean)
                resize_(table, size, mean)
                write_rows(table, values)
            grown: list[Any] = []
            for (name, module), start in zip(quantized.items(), quantized_starts, strict=True):
                if tied := [each for each in grown if each.weight is module.weight]:
                    share_beside(module, tied[0])
                    continue
                full = rows_now[name]
                mean = mean_row(full)
                put_beside(module, size, full, mean, start_rows(start, full, mean), ids.values())
                grown.append(module)
            update_configs(model, before, size)
            selections = {table.name: _rows_of(table.tensor, ids.values()) for table in tables}
            for name, module in quantized.items():
                slots = module.new_token_slots[list(ids.values())].tolist()
                selections[name + _NAME] = _rows_of(module.new_tokens.weight, slots)
            plan = train_only(model, {**selections, **(also or {})})
            for owner, name in [owner for table in tables for owner in table.owners]:  # for save_learned
                cast(State, state_of(owner)).tokens[name] = dict(ids)
            for module in quantized.values():
                note_tokens(module.new_tokens, {text: int(module.new_token_slots[id]) for text, id in ids.items()})
            without = f"{listed(map(repr, others), most=4)} had no row; frozen now" if others else ""
            plan.lines = tuple(
                replace(line, note="; ".join(filter(None, [_BESIDE * line.name.endswith(_NAME), without])))
                if line.name in selections
                else line
                for line in plan.lines
            )
            return plan


def _rows_of(table: Tensor, ids: Iterable[int]) -> Selection:
    return rows(list(ids), dtype=torch.float32 if table.dtype in _HALF else None)


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
