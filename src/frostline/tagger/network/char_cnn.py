"""How a word is written: a convolution over its bytes, of which the strongest answer in the word is kept.

Letters used for shapes in this file:
    *  tokens, any shape         S  bytes of one, LONGEST      C  filters
    P  bytes of all tokens

The idea: a word's characters are its UTF-8 bytes. There are 256 of them in any script, so no alphabet has to be
collected or stored. Convolution of a lookup is a sum of lookups, one table for each place of the window; only bytes
that are there are looked up, so that one long word makes no other word dearer, nor changes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frostline.tagger.data.vocabulary import NOTHING


class Spelling(nn.Module):
    """Features of how a token is written; 0 for one without a character.

    Args:
        filters: C, 1 or more.
        device: Where the weights are.

    Example:
        >>> Spelling(5)(spell(["New", "York"])).shape
        torch.Size([2, 5])

    Source: Ma and Hovy, 2016, over bytes; each filter has a weight of its own for each byte of its window.
    """

    def __init__(self, filters: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 256, filters, device=device))
        nn.init.normal_(self.weight, std=3**-0.5)  # sums of a window are then as wide as other features

    def forward(self, spellings: Tensor) -> Tensor:
        """Return features, shape (*, C), of spellings, uint8, shape (*, S), each filled up with NOTHING."""
        words = spellings.flatten(0, -2)
        inside = words != NOTHING
        windows = nn.functional.pad(words, (1, 1), value=NOTHING).unfold(1, 3, 1)[inside].long()  # (P, 3)
        before, at, behind = windows.unbind(1)
        sums = self.weight[0].index_select(0, before)  # (P, C)
        sums = sums + self.weight[1].index_select(0, at) + self.weight[2].index_select(0, behind)
        lengths = inside.sum(1)
        first = lengths.cumsum(0) - lengths
        numbers = torch.arange(len(sums), device=sums.device)
        most = nn.functional.embedding_bag(numbers, sums, first, mode="max")
        return most.view(*spellings.shape[:-1], self.weight.shape[2])
