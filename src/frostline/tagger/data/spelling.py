"""How a token is written, as the network reads it: a word shape and its UTF-8 bytes.

The idea: vectors are looked up in lower case as well, so capitals would be lost; the shape gives them back. Bytes need
no alphabet and serve every script.

Letters used for shapes in this file:
    N  tokens          S  bytes of a token, MAX_BYTES
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

WORD_SHAPES = 14  # values of `word_shape`, with 0 for padding
MAX_BYTES = 32  # bytes that are read of a token
NO_BYTE = 0xFF  # fills up short tokens, and stands for padding: UTF-8 never has this byte


@lru_cache(maxsize=1 << 16)
def word_shape(token: str) -> int:
    """Return the word shape of `token`, 1 to WORD_SHAPES - 1: its capitals, digits and signs.

    Example:
        >>> [word_shape(token) for token in ["word", "Word", "WORD", "iPad", "42", "@me"]]
        [8, 6, 5, 7, 4, 1]
    """
    if token.startswith("@") and len(token) > 1:
        return 1
    if token.startswith("#") and len(token) > 1:
        return 2
    if token.startswith(("http://", "https://", "www.")):
        return 3
    if any(character.isdigit() for character in token):
        return 4 if not any(character.isalpha() for character in token) else 9
    if not any(character.isalpha() for character in token):
        return 10 if token.isascii() else 11
    if token.isupper():
        return 5 if len(token) > 1 else 12
    if token[0].isupper():
        return 6 if token[1:].islower() else 13
    return 8 if token == token.lower() else 7


def token_bytes(tokens: Sequence[str]) -> Tensor:
    """Return the UTF-8 bytes of one or more tokens, uint8, shape (N, S).

    Of a token longer than MAX_BYTES the first and the last half are read.

    Example:
        >>> token_bytes(["né"]).tolist()[0][:5], token_bytes(["New", "York"]).shape
        ([110, 195, 169, 255, 255], torch.Size([2, 32]))
    """
    return torch.frombuffer(bytearray(b"".join(map(_padded, tokens))), dtype=torch.uint8).view(-1, MAX_BYTES)


@lru_cache(maxsize=1 << 16)
def _padded(token: str) -> bytes:
    data = token.encode("utf-8", "surrogatepass")
    if len(data) > MAX_BYTES:
        data = data[: MAX_BYTES // 2] + data[-MAX_BYTES // 2 :]
    return data.ljust(MAX_BYTES, bytes([NO_BYTE]))
