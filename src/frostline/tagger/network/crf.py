"""A linear-chain conditional random field: the tags of a sentence are scored together.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens of the longest       K  tags

The score of a tag sequence is the sum of the scores of its tokens, of its transitions from tag to tag, and of its first
and last tag. Its probability is exp(score) over the sum of exp(score) of all legal sequences, computed in log space.
Sequences that the tag scheme forbids count neither in training nor in decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from frostline.tagger.data.tags import may_follow

_FORBIDDEN = -1e4  # added to a score: its exp is 0, and unlike -inf it leaves no NaN in a gradient


class CRF(nn.Module):
    """Log-likelihood of tag sequences, and the best sequence.

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
        forbidden = [[not may_follow(tag, previous) for tag in tags] for previous in tags]
        forbidden_start = [not may_follow(tag, "O") for tag in tags]
        self.register_buffer("forbidden", torch.tensor(forbidden) * _FORBIDDEN, persistent=False)
        self.register_buffer("forbidden_start", torch.tensor(forbidden_start) * _FORBIDDEN, persistent=False)

    def loss(self, scores: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Return the negative log-likelihood of each sentence's tags, shape (B,), 0 for an empty sentence.

        Args:
            scores: Score of each tag for each token, shape (B, T, K).
            tags: The right tags, a legal sequence, int64, shape (B, T); those after the end are ignored.
            lengths: Tokens of each sentence, int64, shape (B,), 0 to T.

        Cost: T steps over (B, K, K).
        """
        inside = torch.arange(scores.shape[1], device=scores.device) < lengths[:, None]  # (B, T)
        loss = self._log_partition(scores, inside) - self._sequence_score(scores, tags, inside)
        return torch.where(lengths > 0, loss, 0)

    @torch.no_grad()
    def decode(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """Return the legal tags of the highest score for each sentence, int64, shape (B, T), 0 after its end.

        Of sequences with equal scores, the one with the lower tag at the last token where they differ.

        Args: as for `loss`. Cost: T steps over (K, K, B) and back, in numpy on the CPU wherever the scores are: they
        are small, and numpy spends less on each operation than torch.
        """
        dtype = torch.promote_types(self.end.dtype, torch.float32)  # numpy has no bfloat16, and is slow in float16
        weights = (tensor.to("cpu", dtype).numpy() for tensor in (*self._legal_transitions(), self.end))
        transitions, start, end = weights
        of_tokens = scores.to("cpu", dtype).numpy().transpose(1, 2, 0).copy()  # (T, K, B)
        last = lengths.cpu().numpy() - 1  # (B,)
        # Forward: the best score of a sequence up to each token that ends in each tag, (K, B).
        best = [start[:, None] + of_tokens[0]]
        for of_token in of_tokens[1:]:
            best.append(np.maximum.reduce(best[-1][:, None] + transitions[:, :, None]) + of_token)
        at_end = np.concatenate(best).reshape(of_tokens.shape)[last, :, np.arange(len(last))]  # (B, K)
        final = (at_end + end).argmax(axis=1)  # (B,)
        # Backward: which tag led there. A sentence that ends at t or before keeps its final tag until then.
        tag, path, shortest = final, [final], last.min(initial=len(best))
        for t in reversed(range(len(best) - 1)):
            tag = (best[t] + transitions.take(tag, axis=1)).argmax(axis=0)
            if t >= shortest:
                tag = np.where(t < last, tag, final)
            path.append(tag)
        found = np.concatenate(path[::-1]).reshape(len(path), len(last)).T  # (B, T)
        return torch.from_numpy(np.where(np.arange(len(path)) <= last[:, None], found, 0)).to(scores.device)

    def _legal_transitions(self) -> tuple[Tensor, Tensor]:
        return self.transitions + self.forbidden, self.start + self.forbidden_start

    def _log_partition(self, scores: Tensor, inside: Tensor) -> Tensor:
        """Return the log of the sum of exp(score) of all legal sequences, shape (B,): the forward algorithm."""
        transitions, start = self._legal_transitions()
        total = start + scores[:, 0]  # (B, K) log-sum over the sequences that end in a tag
        for t in range(1, scores.shape[1]):
            longer = torch.logsumexp(total[:, :, None] + transitions, dim=1) + scores[:, t]
            total = torch.where(inside[:, t, None], longer, total)
        return torch.logsumexp(total + self.end, dim=1)

    def _sequence_score(self, scores: Tensor, tags: Tensor, inside: Tensor) -> Tensor:
        """Return the score of the given tags of each sentence, shape (B,)."""
        transitions, start = self._legal_transitions()
        tags = tags.masked_fill(~inside, 0)
        of_tokens = scores.gather(2, tags[:, :, None])[:, :, 0].where(inside, 0).sum(dim=1)
        of_transitions = transitions[tags[:, :-1], tags[:, 1:]].where(inside[:, 1:], 0).sum(dim=1)
        last = tags.gather(1, (inside.sum(dim=1, keepdim=True) - 1).clamp(min=0))[:, 0]
        return start[tags[:, 0]] + of_tokens + of_transitions + self.end[last]
