"""Word vectors trained on plain text by word2vec, scaled to a standard deviation of about 0.35.

The scale is for the LSTM that reads them: it learns slowly from small inputs, and frozen inputs cannot grow.
"""

from __future__ import annotations

from collections.abc import Sequence

from frostline import word2vec
from frostline.vectors import Vectors


def train_vectors(sentences: Sequence[Sequence[str]], dimension: int, epochs: int, seed: int = 0) -> Vectors:
    """Train word2vec (CBOW, two words on each side) and scale the matrix to a standard deviation of 0.35.

    Args:
        sentences: Lists of tokens.
        dimension: Dimension of a vector, 1 or more.
        epochs: Passes over the text, 1 or more.
        seed: Same seed, same vectors.

    Returns:
        The words that occur five times or more, the most frequent first, and their vectors.

    Cost: about 2 million tokens per second on one core; without a C++ compiler a fiftieth of it.
    """
    settings = word2vec.Settings(dim=dimension, window=2, epochs=epochs, seed=seed)
    trained = word2vec.train(sentences, settings).vectors
    return Vectors(trained.words, 0.35 * trained.matrix / trained.matrix.std())
