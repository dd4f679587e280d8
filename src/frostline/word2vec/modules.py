"""The models of word2vec as modules, whose loss on a batch autograd can differentiate.

Letters used for shapes in this file:
    V  rows of the input table    T  rows of the output table (T <= V)     D  dimension
    B  targets of a batch         C  words of the widest context           K  negatives of each target
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import ShapeError


class _Word2Vec(nn.Module):
    """Two tables; a subclass says what predicts.

    Args:
        words: The V words, or how many there are.
        dim: Dimension of a vector, D.
        outputs: Rows of the output table, those of the first words. None: V.

    Attributes:
        words: The words, shape (V,), or None.
        input: Rows of words as context: the word vectors. Drawn from -0.5 / D to 0.5 / D.
        output: Rows of words as targets. Zeros.
    """

    def __init__(self, words: Sequence[str] | int, dim: int, outputs: int | None = None) -> None:
        super().__init__()
        rows = words if isinstance(words, int) else len(words)
        self.words = None if isinstance(words, int) else words
        self.input = nn.Embedding(rows, dim)
        self.output = nn.Embedding(rows if outputs is None else outputs, dim)
        nn.init.uniform_(self.input.weight, -0.5 / dim, 0.5 / dim)
        nn.init.zeros_(self.output.weight)

    def hidden(self, contexts: Tensor) -> Tensor:
        """Return what the target is predicted from, shape (B, D)."""
        raise NotImplementedError

    def forward(self, contexts: Tensor, targets: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Return the mean loss of a batch, as `Training.examples` gives it.

        Args:
            contexts: Ids of words, int64, shape (B, C); -1 where the context is shorter. For skip-gram (B, 1).
            targets: Ids of the words to predict, int64, shape (B,).
            negatives: Ids of words to tell them from, int64, shape (B, K); the target itself is skipped among them.
                None: the loss is that of the full softmax over all T words.

        Returns:
            A scalar: the mean over targets of -log sigmoid(score) - the sum of log sigmoid(-score of a negative), or
            of the cross entropy.

        Raises:
            ShapeError: The shapes do not fit each other.

        Cost: O(B (C + K) D); without negatives O(B T D).
        """
        shapes = [tuple(x.shape) for x in (contexts, targets) if x is not None]
        if contexts.dim() != 2 or targets.shape != contexts.shape[:1]:
            raise ShapeError(f"contexts, targets: expected (B, C) and (B,), got {shapes[0]} and {shapes[1]}.")
        if negatives is not None and (negatives.dim() != 2 or len(negatives) != len(targets)):
            raise ShapeError(f"negatives: expected ({len(targets)}, K), got {tuple(negatives.shape)}.")
        hidden = self.hidden(contexts)
        if negatives is None:
            return F.cross_entropy(F.linear(hidden, self.output.weight), targets)
        rows = self.output(torch.cat([targets.unsqueeze(1), negatives], dim=1))  # (B, 1 + K, D)
        scores = (rows * hidden.unsqueeze(1)).sum(dim=2)
        missed = F.softplus(scores[:, 1:]) * (negatives != targets.unsqueeze(1))
        return (F.softplus(-scores[:, 0]) + missed.sum(dim=1)).mean()


class CBOW(_Word2Vec):
    """Continuous bag of words: the mean of the rows around a word predicts it.

    Its gradients are those of the loss. Training as in word2vec gives each word of a context the gradient of the mean,
    undivided: as many times this one as the context has words.

    Args:
        words: The V words, or how many there are.
        dim: Dimension of a vector, D.
        outputs: Rows of the output table, those of the first words. None: V.

    Example:
        >>> model = CBOW(["ice", "snow", "rain"], dim=4)
        >>> loss = model(torch.tensor([[0, 2], [1, -1]]), torch.tensor([1, 2]), torch.tensor([[0], [0]]))
        >>> round(loss.item(), 4)  # all output rows are 0: 2 log 2
        1.3863
    """

    def hidden(self, contexts: Tensor) -> Tensor:
        """Return the mean of the context's rows, shape (B, D)."""
        found = contexts >= 0
        rows = self.input(contexts.clamp(min=0)) * found.unsqueeze(2)
        mean: Tensor = rows.sum(dim=1) / found.sum(dim=1, keepdim=True).clamp(min=1)
        return mean


class SkipGram(_Word2Vec):
    """Skip-gram: each word of the context predicts the word alone.

    Args:
        words: The V words, or how many there are.
        dim: Dimension of a vector, D.
        outputs: Rows of the output table, those of the first words. None: V.

    Example:
        >>> model = SkipGram(3, dim=4)
        >>> round(model(torch.tensor([[0], [2]]), torch.tensor([1, 1])).item(), 4)  # log 3
        1.0986
    """

    def hidden(self, contexts: Tensor) -> Tensor:
        """Return the row of the one word in each context, shape (B, D)."""
        if contexts.shape[1] != 1:
            raise ShapeError(f"contexts: a skip-gram target has one word, got shape {tuple(contexts.shape)}.")
        row: Tensor = self.input(contexts).squeeze(1)
        return row
