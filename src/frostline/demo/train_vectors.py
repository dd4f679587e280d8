"""Word vectors trained on plain text with gensim, scaled to a standard deviation of about 0.35.

The scale is for the LSTM that reads them: it learns slowly from small inputs, and frozen inputs cannot grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from frostline.errors import MissingExtraError
from frostline.vectors import Vectors


def train_vectors(sentences: Sequence[Sequence[str]], dimension: int, epochs: int, seed: int = 0) -> Vectors:
    """Train word2vec (CBOW, two words on each side) and scale the matrix to a standard deviation of 0.35.

    Args:
        sentences: Lists of tokens.
        dimension: Dimension of a vector, 1 or more.
        epochs: Passes over the text, 1 or more.
        seed: Same seed, same vectors; one thread trains.

    Returns:
        The words that occur five times or more, the most frequent first, and their vectors.

    Raises:
        MissingExtraError: gensim is not installed.

    Cost: about 2 million tokens per second on one core.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError:
        raise MissingExtraError(
            "the demo trains vectors with gensim. Install it: pip install 'frostline[demo]'"
        ) from None
    model = Word2Vec(sentences, vector_size=dimension, window=2, min_count=5, sg=0, epochs=epochs, seed=seed, workers=1)
    matrix = model.wv.vectors
    return Vectors(cast("list[str]", model.wv.index_to_key), 0.35 * matrix / matrix.std())
