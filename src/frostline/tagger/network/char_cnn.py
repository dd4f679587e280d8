"""Features of a word's spelling: a convolution over its bytes, then the maximum over the word.

Letters used for shapes in this file:
    *  tokens, any shape         S  bytes of a token, MAX_BYTES      C  filters
    P  bytes of all tokens

The idea: a word's characters are its UTF-8 bytes. There are 256 of them in any script, so no alphabet has to be
collected or stored. The convolution of one-hot bytes is a sum of lookups, one table for each offset of the window.
Only bytes that exist are looked up, so a long word neither slows down nor changes the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frostline.tagger.data.spelling import NO_BYTE


class CharCNN(nn.Module):
    """Features of a token's bytes; 0 for an empty token.

    Args:
        filters: C, 1 or more.
        device: Where the weights are.

    Example:
        >>> from frostline.tagger.data.spelling import token_bytes
        >>> CharCNN(5)(token_bytes(["New", "York"])).shape
        torch.Size([2, 5])

    Source: Ma and Hovy, 2016, over bytes; each filter has a weight of its own for each byte of its window.
    """

    def __init__(self, filters: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 256, filters, device=device))
        nn.init.normal_(self.weight, std=3**-0.5)  # the sum over a window then has unit variance, as other features

    def forward(self, spellings: Tensor) -> Tensor:
        """Return features, shape (*, C), of bytes, uint8, shape (*, S), each token filled up with NO_BYTE."""
        words = spellings.flatten(0, -2)
        inside = words != NO_BYTE
        windows = nn.functional.pad(words, (1, 1), value=NO_BYTE).unfold(1, 3, 1)[inside].long()  # (P, 3)
        before, at, after = windows.unbind(1)
        sums = self.weight[0].index_select(0, before)  # (P, C)
        sums = sums + self.weight[1].index_select(0, at) + self.weight[2].index_select(0, after)
        lengths = inside.sum(1)
        first = lengths.cumsum(0) - lengths
        # embedding_bag is used for its maximum over segments of unequal length, and gives 0 for an empty one
        indices = torch.arange(len(sums), device=sums.device)
        strongest = nn.functional.embedding_bag(indices, sums, first, mode="max")
        return strongest.view(*spellings.shape[:-1], self.weight.shape[2])
