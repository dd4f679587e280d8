"""A chain of tags scored as a whole: a linear-chain conditional random field.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens of the longest       K  tags

The score of a chain is the sum of its tokens' scores, of its transitions from tag to tag, and of how it starts and
ends. Its probability is exp(score) over the sum of exp(score) of all legal chains; everything stays in log space.
Chains that the tag scheme forbids count neither in training nor in decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from frostline.tagger.data.tags import may_follow

_FORBIDDEN = -1e4  # added to a score: its exp is 0, and unlike -inf it leaves no NaN in a gradient


class CRF(nn.Module):
    """Log-likelihood and best chain of tags.

    Args:
        tags: K names in the BIO scheme, in the order of the scores: I-x follows only B-x or I-x.

    Example:
        >>> crf = CRF(["O", "B-a", "I-a"])
        >>> scores = torch.tensor([[[0.0, 1.0, 9.0], [0.0, 0.0, 1.0]]])  # I-a cannot come first
        >>> crf.decode(scores, torch.tensor([2]))
        tensor([[1, 2]])

    Source: Lafferty, McCallum and Pereira, 2001.
    """

    forbidden: Tensor
    forbidden_start: Tensor

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        size = len(tags)
        self.transitions = nn.Parameter(torch.zeros(size, size))  # from tag (row) to tag (column)
        self.start = nn.Parameter(torch.zeros(size))
        self.end = nn.Parameter(torch.zeros(size))
        forbidden = [[not may_follow(tag, before) for tag in tags] for before in tags]
        first = [not may_follow(tag, "O") for tag in tags]
        self.register_buffer("forbidden", torch.tensor(forbidden) * _FORBIDDEN, persistent=False)
        self.register_buffer("forbidden_start", torch.tensor(first) * _FORBIDDEN, persistent=False)

    def loss(self, scores: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Return the negative log-likelihood of each sentence's tags, shape (B,), 0 for a sentence without a token.

        Args:
            scores: Score of each tag for each token, shape (B, T, K).
            tags: The right tags, a legal chain, int64, shape (B, T); anything behind the end.
            lengths: Tokens of each sentence, int64, shape (B,), 0 to T.

        Cost: T steps over (B, K, K).
        """
        inside = torch.arange(scores.shape[1], device=scores.device) < lengths[:, None]  # (B, T)
        return torch.where(lengths > 0, self._all_chains(scores, inside) - self._chain(scores, tags, inside), 0)

    @torch.no_grad()
    def decode(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """Return the legal chain of the highest score for each sentence, int64, shape (B, T), 0 behind its end.

        Of two such chains, that of the lower tag at the last token where they differ.

        Args: as for `loss`. Cost: T steps over (K, K, B) and back, in numpy on the CPU wherever the scores are: they
        are small, and so is what numpy spends on each operation.
        """
        dtype = torch.promote_types(self.end.dtype, torch.float32)  # of less numpy knows nothing, or is slow
        moves, start, end = (scored.to("cpu", dtype).numpy() for scored in (*self._moves(), self.end))
        each = scores.to("cpu", dtype).numpy().transpose(1, 2, 0).copy()  # (T, K, B)
        last = lengths.cpu().numpy() - 1  # (B,)
        best = [start[:, None] + each[0]]  # (K, B) best score of a chain that ends in a tag
        for scored in each[1:]:  # the largest over the tag before
            best.append(np.maximum.reduce(best[-1][:, None] + moves[:, :, None]) + scored)
        final = (np.concatenate(best).reshape(each.shape)[last, :, np.arange(len(last))] + end).argmax(axis=1)  # (B,)
        tag, chain, first_over = final, [final], last.min(initial=len(best))
        for t in reversed(range(len(best) - 1)):
            tag = (best[t] + moves.take(tag, axis=1)).argmax(axis=0)
            if t >= first_over:
                tag = np.where(t < last, tag, final)
            chain.append(tag)
        found = np.concatenate(chain[::-1]).reshape(len(chain), len(last)).T  # (B, T)
        return torch.from_numpy(np.where(np.arange(len(chain)) <= last[:, None], found, 0)).to(scores.device)

    def _moves(self) -> tuple[Tensor, Tensor]:
        return self.transitions + self.forbidden, self.start + self.forbidden_start

    def _all_chains(self, scores: Tensor, inside: Tensor) -> Tensor:
        """Log of the sum of exp(score) of all legal chains, shape (B,): the forward algorithm."""
        moves, start = self._moves()
        total = start + scores[:, 0]  # (B, K) log-sum over the chains that end in a tag
        for t in range(1, scores.shape[1]):
            longer = torch.logsumexp(total[:, :, None] + moves, dim=1) + scores[:, t]
            total = torch.where(inside[:, t, None], longer, total)
        return torch.logsumexp(total + self.end, dim=1)

    def _chain(self, scores: Tensor, tags: Tensor, inside: Tensor) -> Tensor:
        """Score of one chain for each sentence, shape (B,)."""
        moves, start = self._moves()
        tags = tags.masked_fill(~inside, 0)
        of_tokens = scores.gather(2, tags[:, :, None])[:, :, 0].where(inside, 0).sum(dim=1)
        of_moves = moves[tags[:, :-1], tags[:, 1:]].where(inside[:, 1:], 0).sum(dim=1)
        last = tags.gather(1, (inside.sum(dim=1, keepdim=True) - 1).clamp(min=0))[:, 0]
        return start[tags[:, 0]] + of_tokens + of_moves + self.end[last]
