"""From what the network read to tags: a score for each tag, then the tags one by one or as a chain.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens of the longest       K  tags
    W  width of what is read for each token
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frostline.tagger.batches import NO_TAG
from frostline.tagger.crf import CRF


class Head(nn.Module):
    """One tag set: its scores, its loss and its best tags.

    Args:
        width: W.
        tags: K names in the BIO scheme.
        chain: Judge the tags of a sentence as a chain (see `CRF`), or each token's alone.
        device: Where the weights of the scores are.

    Example:
        >>> head = Head(2, ["O", "B-a", "I-a"], chain=True)
        >>> head.tags(torch.zeros(1, 4, 2), torch.tensor([3])).shape
        torch.Size([1, 4])
    """

    def __init__(self, width: int, tags: Sequence[str], chain: bool, device: torch.device | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(tags), device=device)
        self.crf = CRF(tags) if chain else None

    def forward(self, read: Tensor) -> Tensor:
        """Return the score of each tag for each token, shape (B, T, K), of what was read, shape (B, T, W)."""
        scores: Tensor = self.linear(read)
        return scores

    def loss(self, read: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Return the negative log-likelihood of each sentence's tags, shape (B,), 0 for a sentence without a token.

        Args:
            read: What was read for each token, shape (B, T, W).
            tags: The right tags, int64, shape (B, T), NO_TAG behind the end.
            lengths: Tokens of each sentence, int64, shape (B,), 0 to T.
        """
        scores = self(read).float()  # under autocast they are bfloat16, too coarse for sums over chains
        if self.crf is not None:
            return self.crf.loss(scores, tags, lengths)
        each = nn.functional.cross_entropy(scores.transpose(1, 2), tags, reduction="none")  # (B, T), 0 under NO_TAG
        return each.sum(dim=1)

    def tags(self, read: Tensor, lengths: Tensor) -> Tensor:
        """Return the best tags of each sentence, int64, shape (B, T); anything behind its end."""
        scores = self(read)
        return scores.argmax(dim=-1) if self.crf is None else self.crf.decode(scores, lengths)


def shares(tags: Tensor, by_sentence: bool) -> Tensor:
    """Return what the loss of each sentence counts in the mean of a batch, shape (B,), 0 without a token.

    Args:
        tags: The right tags, int64, shape (B, T), NO_TAG where there is no token.
        by_sentence: Mean over sentences of each one's mean over its tokens, or mean over all tokens.

    Example:
        >>> tags = torch.tensor([[0, 1, 2], [0, NO_TAG, NO_TAG]])
        >>> shares(tags, by_sentence=False), shares(tags, by_sentence=True)
        (tensor([0.2500, 0.2500]), tensor([0.1667, 0.5000]))
    """
    counts = (tags != NO_TAG).sum(dim=1)  # (B,)
    each = len(tags) * counts if by_sentence else counts.sum().expand_as(counts)
    return torch.where(counts > 0, 1 / each.clamp(min=1), 0)
