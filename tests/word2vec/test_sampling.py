"""Random numbers depend on key and counter alone, and have the distributions of word2vec."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from frostline.word2vec import sampling


def splitmix64(key, counter):
    """The published generator, in Python's integers."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


@pytest.mark.parametrize("key", [0, 1, 2**63, 2**64 - 1])
def test_the_numbers_are_those_of_splitmix64(key):
    counters = np.array([0, 1, 255, 256, 10**9])
    assert sampling.numbers(key, counters).tolist() == [splitmix64(key, int(counter)) for counter in counters]


@pytest.mark.parametrize("counts", [[5], [7, 7, 7], [1000, 100, 10, 1], list(range(1, 400))])
def test_the_alias_table_gives_each_word_its_share(counts):
    counts = np.array(counts)
    table, share = sampling.alias_table(counts), Counter()
    for column, entry in enumerate(table.tolist()):
        own = Fraction((entry >> 32) + (entry >> 32 == 2**32 - 1), 2**32)
        share[column] += own / len(counts)
        share[entry & 0xFFFFFFFF] += (1 - own) / len(counts)
    wanted = counts**0.75 / (counts**0.75).sum()
    assert np.allclose([float(share[word]) for word in range(len(counts))], wanted, atol=1e-8)


def test_negatives_are_drawn_by_the_table():
    counts = np.array([81, 16, 1])
    drawn = sampling.negatives(3, np.arange(20_000) * 5, 5, sampling.alias_table(counts))
    assert drawn.shape == (20_000, 5)
    assert np.allclose(np.bincount(drawn.ravel()) / drawn.size, np.array([27, 8, 1]) / 36, atol=0.01)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.02  # independent of each other


def test_frequent_words_are_read_as_often_as_word2vec_reads_them():
    counts, sample = np.array([900_000, 99_000, 1000]), 1e-3
    keep = sampling.keep_thresholds(counts, sample)
    words = np.zeros(1, dtype=np.int32).repeat(sampling.PARAGRAPH)
    read = np.mean([len(sampling.draws(key, words, keep, 5, 6).words) for key in range(400)]) / len(words)
    share = 0.9
    assert read == pytest.approx((np.sqrt(share / sample) + 1) * sample / share, rel=0.05)
    assert (sampling.keep_thresholds(counts, 0) == 2**32 - 1).all()


def test_all_widths_of_windows_are_as_likely():
    keep = np.full(1, 2**32 - 1, dtype=np.uint32)
    widths = [sampling.draws(key, np.zeros(200, dtype=np.int32), keep, 5, 6).widths for key in range(200)]
    assert np.allclose(np.bincount(np.concatenate(widths), minlength=6)[1:] / 40_000, 0.2, atol=0.01)


def test_a_batch_is_the_smaller_the_more_often_a_row_changes():
    sizes = []
    for words in (3, 30, 300, 30_000):
        counts = np.full(words, 1000)
        sizes.append(sampling.batch_words(counts, sampling.keep_thresholds(counts, 0), 5, 1, 0.05, 1.0))
    assert sizes == sorted(sizes)
    assert sizes[0] < 40
    assert sizes[-1] == 1024
