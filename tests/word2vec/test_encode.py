"""Both encoders read any text as Python's own `split` does, in pieces of any size."""

import random

import numpy as np
import pytest

from frostline.word2vec import compiled
from frostline.word2vec.encode import BadText, CompiledEncoder, PythonEncoder


@pytest.fixture(params=["c++", "python"])
def encoder(request):
    if request.param == "python":
        return PythonEncoder
    request.getfixturevalue("cpp_compiler")
    return lambda: CompiledEncoder(compiled.encoder())


def expected(text):
    """Return ids, words and counts, the slow and obvious way."""
    words, ids = [], []
    for line in text.split(b"\n"):
        for word in line.split():
            if word not in words:
                words.append(word)
            ids.append(words.index(word))
        if line.split():
            ids.append(-1)
    counts = [ids.count(index) for index in range(len(words))]
    return ids, [word.decode() for word in words], counts


def encoded(encoder, text, cuts=()):
    made, ids = encoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        ids.extend(made.feed(text[start:end]).tolist())
    ids.extend(made.feed(b"\n").tolist())
    words, counts = made.vocabulary()
    return ids, words, counts.tolist()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\n",
        b"one",
        b"one\n",
        b"a b a\n\n \t\nb\r\nc\x0bd\x0ce\n",
        "kawa\u00a0zimna \u2028 żółć 😀 ı\u0085x\n".encode(),
        b"x" * 65_535 + b" y",
    ],
)
def test_words_and_lines_are_those_of_split(encoder, text):
    assert encoded(encoder, text) == expected(text)


def test_pieces_may_end_anywhere(encoder):
    draw = random.Random(0)
    for _ in range(100):
        text = "".join(draw.choices(["a", "é", "漢", "😀", " ", "\n", "\t", "\r\n"], k=60)).encode()
        cuts = sorted(draw.sample(range(len(text)), 8))
        assert encoded(encoder, text, cuts) == expected(text)


def test_a_hundred_thousand_words_are_told_apart(encoder):
    words = [f"word{index}" for index in range(100_000)]
    ids, found, counts = encoded(encoder, " ".join([*words, *words]).encode())
    assert found == words
    assert set(counts) == {2}
    assert np.array_equal(ids[:-1], np.tile(np.arange(100_000), 2))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (b"a\nb\ncaf\xe9\n", 3, "not UTF-8"),
        (b"a\n\xed\xa0\x80\n", 2, "not UTF-8"),  # a surrogate
        (b"\xc0\xaf", 1, "not UTF-8"),  # a longer form of "/"
        (b"\xf4\x90\x80\x80", 1, "not UTF-8"),  # above U+10FFFF
        (b"a\n\xe6\xbc", 2, "not UTF-8"),  # cut off
        ("a b".encode("utf-16-le"), 1, "NUL byte"),
        (b"a\n\n" + b"x" * 65_536 + b" y", 3, "longer than 65,535"),
        (b"a\n" + b"x" * 70_000, 2, "longer than 65,535"),
    ],
)
def test_what_is_not_text_is_named_with_its_line(encoder, text, line, says):
    with pytest.raises(BadText, match=says) as caught:
        encoded(encoder, text)
    assert caught.value.line == line


def test_all_of_unicode_is_read(encoder):
    text = " ".join(chr(code) for code in range(0x80, 0x110000, 7) if not 0xD800 <= code < 0xE000).encode()
    assert encoded(encoder, text)[1] == [word.decode() for word in dict.fromkeys(text.split())]
