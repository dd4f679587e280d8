"""How the rows of new tokens start: from the rows of other tokens, from all of them, from zero, or from given values.

Letters used for shapes in this file:
    V  rows of a table            *  the rest of a row: (D,), or () for a bias
    n  tokens that get a row

A `Start` is what `init=` says, understood while the tokenizer still is the old one; `rows_of` then makes the rows of
one table from it. Sums of half precision are taken in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from frostline.errors import SelectionError
from frostline.printing import listed
from frostline.tokens.tokenizer import pieces_of_text, pieces_of_token

Init = Literal["subwords", "mean", "normal", "zeros"] | Mapping[str, str] | Tensor

_NAMED = ("subwords", "mean", "normal", "zeros")
_SHARE = 1e-9  # of the covariance, as in transformers
_BLOCK = 4096  # rows summed at a time


@dataclass(frozen=True, eq=False)
class Start:
    """How the rows of a table start.

    Attributes:
        kind: "pieces" (the mean of a token's pieces), "normal", "zeros" or "values".
        pieces: Text -> the ids of its pieces; the mean of all rows for a text that has none.
        values: Text -> its row, for "values".
        overwrites: Whether tokens that have a row already get a new one too.
    """

    kind: Literal["pieces", "normal", "zeros", "values"]
    pieces: Mapping[str, list[int]]
    values: Mapping[str, Tensor]
    overwrites: bool

    def rows_of(self, table: Tensor, texts: list[str], mean: Tensor) -> Tensor:
        """Return the rows of `texts` in `table` (V, *), shape (n, *); `mean` is that of all rows."""
        if self.kind == "normal":
            return mean + _noise(table, mean, len(texts))
        if self.kind == "zeros":
            return torch.zeros_like(mean).expand(len(texts), *mean.shape)
        return torch.stack([self._row(table, text, mean) for text in texts])

    def _row(self, table: Tensor, text: str, mean: Tensor) -> Tensor:
        if text in self.values and self.values[text].shape == mean.shape:  # the bias of a head has no row of theirs
            return self.values[text].to(mean)
        # The tokenizer may have more ids than the table has rows.
        ids = [i for i in self.pieces.get(text, ()) if i < len(table)]
        if len(ids) == 1:  # a mean of one would make 0.0 of -0.0
            return table[ids[0]].to(mean)
        return table[ids].mean(0, dtype=mean.dtype) if ids else mean


def starts_of(
    init: Any, texts: list[str], others: list[str], tokenizer: Any, rows: int, width: int
) -> tuple[Start, Start]:
    """Return how embeddings start, and how heads do that are not tied to one.

    Args:
        init: As `add_tokens` takes it.
        texts: The listed tokens.
        others: Tokens that are not listed and have no row.
        tokenizer: The tokenizer, to which nothing has been added.
        rows: How many rows the embedding has.
        width: Of its rows, D.
    """
    if not isinstance(init, tuple):
        embedding = _start(init, texts, others, tokenizer, rows, width)
        return embedding, _start("subwords", texts, others, tokenizer, rows, width) if isinstance(
            init, Tensor
        ) else embedding
    if len(init) != 2:
        raise SelectionError(f"init: a tuple of {len(init)}. Pass two: for the embedding, and for an untied head.")
    embedding, head = (_start(each, texts, others, tokenizer, rows, width) for each in init)
    return embedding, head


def check_values(start: Start, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    """Raise unless the values of `start`, if it has any, are rows of a table of this shape and dtype."""
    for value in start.values.values():
        if value.shape != shape[1:]:
            given, expected = ((len(start.values), *shape) for shape in (value.shape, shape[1:]))
            raise _wrong_shape(given, expected, f" for {name}")
        if not value.to(dtype).isfinite().all():
            raise SelectionError(
                f"init: holds NaN or Inf in {dtype}, which every logit would show. Pass values in its range."
            )


def _wrong_shape(given: tuple[int, ...], expected: tuple[int, ...], where: str = "") -> SelectionError:
    return SelectionError(
        f"init: shape {given}. Pass shape {expected}{where}, one row for each listed token, known ones included."
    )


def mean_row(table: Tensor) -> Tensor:
    """Return the mean of all rows of `table` (V, *), shape (*), in float32 or better."""
    dtype = torch.promote_types(table.dtype, torch.float32)
    # In blocks: a sum of half precision in float32 first makes a float32 copy of its input.
    return torch.stack([block.sum(0, dtype=dtype) for block in table.split(_BLOCK)]).sum(0) / len(table)


@contextlib.contextmanager
def random_state_restored_on_error() -> Iterator[None]:
    """Run the block; if it raises, give torch's generator the state that it had before."""
    before = torch.get_rng_state()
    try:
        yield
    except BaseException:
        torch.set_rng_state(before)
        raise


def _start(init: Any, texts: list[str], others: list[str], tokenizer: Any, rows: int, width: int) -> Start:
    def split(wanted: list[str]) -> dict[str, list[int]]:
        return {text: pieces_of_token(tokenizer, text) for text in wanted}

    if isinstance(init, Tensor):
        if init.ndim != 2 or len(init) != len(texts):
            raise _wrong_shape(tuple(init.shape), (len(texts), width))
        return Start("values", split(texts + others), dict(zip(texts, init.detach(), strict=True)), True)
    if isinstance(init, Mapping):
        return Start("pieces", split(others) | _described(init, texts, tokenizer, rows), {}, True)
    if not isinstance(init, str) or init not in _NAMED:
        raise SelectionError(
            f"init: {init!r} is not known. Pass {', '.join(map(repr, _NAMED))}, a mapping of each token to a text, a "
            "tensor of one row for each token, or a tuple of two of these, for the embedding and the head."
        )
    if init == "subwords":
        return Start("pieces", split(texts + others), {}, False)
    return Start("normal" if init == "normal" else "zeros" if init == "zeros" else "pieces", {}, {}, False)


def _described(init: Mapping[Any, Any], texts: list[str], tokenizer: Any, rows: int) -> dict[str, list[int]]:
    """Return token -> ids of the tokens of its text."""
    if missing := [text for text in texts if text not in init]:
        raise SelectionError(f"init: has no text for {listed(map(repr, missing), most=8)}. Give each listed token one.")
    if more := [token for token in init if token not in texts]:
        raise SelectionError(f"init: {more[0]!r} is not among the tokens. List it, or leave it out.")
    pieces = {}
    for token, text in init.items():
        if not isinstance(text, str):
            raise TypeError(f"init: expected a text for {token!r}, such as 'search tool', got {text!r}.")
        pieces[token] = [i for i in pieces_of_text(tokenizer, text) if i < rows]
        if not pieces[token]:
            raise SelectionError(f"init: no token of {text!r}, given for {token!r}, has a row. Give another text.")
    return pieces


def _noise(table: Tensor, mean: Tensor, n: int) -> Tensor:
    """Return n draws from N(0, 1e-9 of the covariance of the rows), shape (n, *).

    A draw is a sum of the centred rows, each times its own normal number: that has their covariance, without a matrix
    of D x D or its factors, and is defined for any table.
    """
    noise = mean.new_zeros((n, *mean.shape))
    for block in table.split(_BLOCK):
        normal = torch.randn(n, len(block), dtype=mean.dtype)  # on the CPU: the same numbers for any device
        noise += torch.tensordot(normal.to(mean.device), block.to(mean.dtype) - mean, dims=1)
    scale: float = (_SHARE / len(table)) ** 0.5
    return noise * scale
