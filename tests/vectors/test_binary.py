"""word2vec's binary form is read bit for bit, and a damaged file is an error."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

import frostline as fl
from frostline.vectors import binary, load

WORDS = ["</s>", "frost", "été", "日本", "frost", "x"]
MATRIX = np.random.default_rng(0).normal(size=(6, 5)).astype("<f4")


def packed(words=WORDS, matrix=MATRIX, header=None, feed=b""):
    header = header or f"{len(words)} {matrix.shape[1]}\n"
    records = [word.encode() + b" " + row.tobytes() + feed for word, row in zip(words, matrix, strict=True)]
    return header.encode() + b"".join(records)


pytestmark = pytest.mark.filterwarnings("ignore:.*listed again with another vector")


@pytest.mark.parametrize("feed", [b"", b"\n"], ids=["gensim", "word2vec.c"])
@pytest.mark.parametrize("name", ["v.bin", "v.bin.gz", "v", "v.txt"])
@pytest.mark.parametrize("block", [16, 1 << 24])
def test_the_binary_form_gives_the_same_bits_and_the_first_of_repeated_words(write, monkeypatch, feed, name, block):
    monkeypatch.setattr(binary, "_BLOCK", block)
    content = packed(feed=feed)
    path = write(gzip.compress(content) if name.endswith(".gz") else content, name)
    for cache in (False, True, True):
        vectors = load(path, cache=cache)
        assert list(vectors.words) == ["</s>", "frost", "été", "日本", "x"]
        assert np.array_equal(vectors.matrix, MATRIX[[0, 1, 2, 3, 5]])


def test_gensim_reads_the_same_from_the_same_file(write):
    gensim = pytest.importorskip("gensim.models")
    path = write(packed(), "v.bin")
    theirs = gensim.KeyedVectors.load_word2vec_format(str(path), binary=True)
    ours = load(path)
    assert list(ours.words) == [word for word in theirs.index_to_key if word is not None][:5]
    for word in ours.words:
        assert np.array_equal(ours[word], theirs[word])


def test_text_under_the_name_bin_is_read_as_text(write):
    assert load(write("2 2\na 1 2\nb 3 4\n", "v.bin")).matrix.tolist() == [[1, 2], [3, 4]]


def test_numbers_without_any_control_byte_are_read_as_binary_under_the_name_bin(write):
    plain = np.frombuffer(b"\xc1\xc2\xc3\x40" * 2, dtype="<f4").reshape(1, 2)
    assert np.array_equal(load(write(packed(["a"], plain), "v.bin")).matrix, plain)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (packed()[:-1], "the header says 6 words of 5 numbers, the file ends in word 6. It is cut off"),
        (packed()[:40], "the header says 6 words of 5 numbers, the file ends in word 2."),
        (packed(header="7 5\n"), "the header says 7 words of 5 numbers, the file ends in word 7."),
        (packed(header="5 5\n"), "the file continues after the 5 words of 5 numbers of its header."),
        (
            packed(header="999999999999 300\n"),
            "the header says 999,999,999,999 words of 300 numbers, the file ends in word",
        ),
        (
            packed(header="6 999999999999\n"),
            "the header says 6 words of 999,999,999,999 numbers, the file ends in word 1.",
        ),
        (b"0 5\n\x00\x01", "no word vectors: the header says 0 words of 5 numbers."),
        (b"5 0\na \x00b \x01", "no word vectors: the header says 5 words of 0 numbers."),
        (
            b"1 2\ncaf\xe9 " + struct.pack("<2f", 1, 2),
            r"word 1, b'caf\xe9', is not UTF-8. Write the file again with gensim",
        ),
        (packed(["a"], np.array([[1, np.nan]], "<f4")), "word 1, 'a', has a number that is not finite."),
        (packed(["", "a"], MATRIX[:2]), "word 1 is empty."),
    ],
)
@pytest.mark.parametrize("squeeze", [False, True], ids=["plain", "gz"])
def test_an_unreadable_file_is_an_error_whatever_its_header_promises(write, cache_folder, content, says, squeeze):
    path = write(gzip.compress(content) if squeeze else content, "v.bin")
    tracemalloc.start()
    with pytest.raises(fl.VectorFileError) as error:
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(error.value).startswith(f"{path}:")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert peak < 100 * 2**20
    assert not list(cache_folder.iterdir())
