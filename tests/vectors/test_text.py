"""Text files of word vectors are read as gensim reads them, and a bad line is named."""

import gzip
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import frostline as fl
from frostline.vectors import load, text
from frostline.vectors.parse_lines import parse

pytestmark = pytest.mark.usefixtures("parser")


def slow(lines):
    """The oracle: Python's own float, rounded to single."""
    with np.errstate(over="ignore"):
        return np.array([[float(field) for field in line.split(" ")[1:]] for line in lines]).astype(np.float32)


def random_lines(count, width, seed=0):
    draw = np.random.default_rng(seed)
    shapes = [lambda x: f"{x:.6g}", repr, lambda x: f"{x:.17e}", lambda x: f"{x:+.4f}", lambda x: f"{x * 1e-30:.3e}"]
    return [
        f"w{row} " + " ".join(shapes[draw.integers(5)](float(x)) for x in draw.normal(size=width))
        for row in range(count)
    ]


def test_numbers_equal_those_of_the_slow_reader_bit_by_bit(write, monkeypatch):
    lines = random_lines(3000, 7)
    monkeypatch.setattr(text, "_BLOCK", 10_000)  # many blocks
    vectors = load(write("\n".join(lines) + "\n"))
    assert np.array_equal(vectors.matrix.view(np.uint32), slow(lines).view(np.uint32))
    assert vectors.words == [f"w{row}" for row in range(3000)]


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_any_float32_written_out_comes_back(parser, values):
    chunk = parse(b"w " + " ".join(map(repr, values)).encode() + b"\n", len(values))
    assert np.array_equal(chunk.matrix[0].view(np.uint32), np.array(values, dtype=np.float32).view(np.uint32))


def test_a_number_between_two_singles_is_rounded_to_double_first(write):
    above_half = "1.00000005960464477539062500000001"  # the double is the exact middle, which goes to even: 1.0
    assert load(write(f"w {above_half} 2\n")).matrix[0, 0] == np.float32(float(above_half)) == 1.0


@pytest.mark.parametrize(
    ("content", "words", "values"),
    [
        ("a 1 2\nb 3 4\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("2 2\na 1 2\nb 3 4\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("2 2 \na 1 2 \nb 3 4 \n", ["a", "b"], [[1, 2], [3, 4]]),
        ("a 1 2\nb 3 4", ["a", "b"], [[1, 2], [3, 4]]),
        ("a 1 2\r\nb 3 4\r\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("2 2\r\na 1 2\r\nb 3 4\r\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("a\t1\t2\nb\t3\t4\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("a 1 2  \nb 3 4\t \n", ["a", "b"], [[1, 2], [3, 4]]),
        ("a 1 2\nb 3 4 \n", ["a", "b"], [[1, 2], [3, 4]]),
        ("a  1   2\n  b 3 \t4\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("a 1 2\n\nb 3 4\n \n\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("\n\na 1 2\nb 3 4\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("1 2 3\n4 5 6\n", ["1", "4"], [[2, 3], [5, 6]]),
        ("1990 0.5\n7 1\n", ["1990", "7"], [[0.5], [1]]),
        ("12 7 8\n12 3 4\n", ["12"], [[7, 8]]),
        ("a 1 2\nb 3 4\na 5 6\nc 7 8\nb 9 9\n", ["a", "b", "c"], [[1, 2], [3, 4], [7, 8]]),
        ("a 1 2\nnew york 3 4\n. . . 5 6\n", ["a", "new york", ". . ."], [[1, 2], [3, 4], [5, 6]]),
        ("new york 3 4\na 1 2\nb 1 2\n", ["new york", "a", "b"], [[3, 4], [1, 2], [1, 2]]),
        ("a 1 2\n95 windows 3 4\n", ["a", "95 windows"], [[1, 2], [3, 4]]),
        ("a 1 2\nb  c 3 4\nd\te 5 6\n", ["a", "b  c", "d\te"], [[1, 2], [3, 4], [5, 6]]),
        ("\u00a0 1 2\n\u2028 3 4\n\x85x 5 6\n", ["\u00a0", "\u2028", "\x85x"], [[1, 2], [3, 4], [5, 6]]),
        ("\x0b 1 2\n\x0c 3 4\n\x1c\x1d 5 6\n", ["\x0b", "\x0c", "\x1c\x1d"], [[1, 2], [3, 4], [5, 6]]),
        ("a\rb 1 2\n\r 3 4\nc\r 5 6\n", ["a\rb", "\r", "c\r"], [[1, 2], [3, 4], [5, 6]]),
        ("\"a 1 2\n' 3 4\n#x 5 6\n", ['"a', "'", "#x"], [[1, 2], [3, 4], [5, 6]]),
        ("\x00 1 2\nnull 3 4\nNA 5 6\n", ["\x00", "null", "NA"], [[1, 2], [3, 4], [5, 6]]),
        ("\ufeffa 1 2\n\ufeffb 3 4\n", ["a", "\ufeffb"], [[1, 2], [3, 4]]),
        ("\ufeff 1 2\na 3 4\n", ["\ufeff", "a"], [[1, 2], [3, 4]]),
        ("\ufeff2 2\na 1 2\nb 3 4\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("nan 1 2\ninf 3 4\n0.5 5 6\n", ["nan", "inf", "0.5"], [[1, 2], [3, 4], [5, 6]]),
        ("a +.5 -5.\nb 1e-3 2E+2\n", ["a", "b"], [[0.5, -5], [1e-3, 200]]),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_oddities_of_real_files_are_read_right(write, content, words, values, packed):
    path = write(gzip.compress(content.encode()) if packed else content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*listed again with another vector")
        vectors = load(path)
    assert list(vectors.words) == words
    assert np.array_equal(vectors.matrix, np.array(values, dtype=np.float32))
    assert [vectors[word].tolist() for word in words] == vectors.matrix.tolist()


def test_a_word_that_starts_with_a_byte_order_mark_keeps_it_at_the_start_of_a_block(write, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK", 8)
    words = ["a", "\ufeffb", "\ufeffc", "\ufeffdd", "\ufeffe"]
    assert list(load(write("".join(f"{word} 1 2\n" for word in words))).words) == words


@pytest.mark.parametrize("block", [8, 16, 1000])
def test_blocks_of_any_size_give_the_same_words(write, monkeypatch, block):
    monkeypatch.setattr(text, "_BLOCK", block)
    vectors = load(write("3 2\na 1 2\nnew york 3 4\n\nb 5 6\n"))
    assert list(vectors.words) == ["a", "new york", "b"]
    assert vectors.matrix.tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("a 1 2\nb 3\nc 5 6\n", 2, "has 1 numbers after the word, expected 2. Correct or delete the line."),
        ("a 1 2\nb\nc 5 6\n", 2, "has 0 numbers after the word, expected 2."),
        ("a 1 2\nb 3 4\nc 5", 3, "It is the last line and has no end: the file seems cut off, download it again."),
        ("a 1 2\nb 3 4\nc 5 -", 3, "number 2 of 2 is '-', which is not a number."),
        ("a 1 2\nb 3.5 4 5\nc 5 6\n", 2, "has 3 numbers after the word, expected 2."),
        ("the 0.1 0.2\nrag 0.3 0.4 0.5\nice 0.6 0.7\n", 2, "has 3 numbers after the word, expected 2."),
        ("a 1 2\nb 3 4\nwindows 95 5 6\n", 3, "has 3 numbers after the word, expected 2."),
        ("a 1 2\nb c 7 5 6\n", 2, "if '7' belongs to the word, join the word's parts with _."),
        ("a 1 2\nb -1 5 6\n", 2, "has 3 numbers after the word, expected 2."),
        ("a 1 2\nb nan 5 6\n", 2, "has 3 numbers after the word, expected 2."),
        ("2 2\na 1 2\nb 1 5 6\n", 3, "has 3 numbers after the word, expected 2."),
        ("a 1 2\n 3 4\nc 5 6\n", 2, "has 2 numbers and no word."),
        ("a 1 2\nb 3 x\nc 5 6\n", 2, "number 2 of 2 is 'x', which is not a number. Correct or delete the line."),
        ("a 1 2\nb 1_0 2\nc 5 6\n", 2, "number 1 of 2 is '1_0', which is not a number."),
        ("a 1 2\nb 0x1 2\nc 5 6\n", 2, "'0x1', which is not a number."),
        ("a 1 2\nb 1,5 2\nc 5 6\n", 2, "'1,5', which is not a number."),
        ("a 1 2\nb 3\u00a0 4\nc 5 6\n", 2, "which is not a number."),
        ("a 1 2\nb nan 4\nc 5 6\n", 2, "number 1 of 2 is 'nan', which is not a finite number."),
        ("a 1 2\nb 3 -inf\nc 5 6\n", 2, "number 2 of 2 is '-inf', which is not a finite number."),
        ("a 1 2\nb 3 1e39\nc 5 6\n", 2, "number 2 of 2 is '1e39', which is beyond float32."),
        ("a 1 2\nb 3 1e400\nc 5 6\n", 2, "number 2 of 2 is '1e400', which is beyond float32."),
        (b"a 1 2\ncaf\xe9 3 4\n", 2, r"the word 'caf\xe9' is not UTF-8. Convert the file: `iconv -f latin1"),
        (b"a 1 2\n\xc3 3 4\n\xa9 5 6\n", 2, r"the word '\xc3' is not UTF-8."),
        ("3 2\na 1 2\nb 3 4\n", 1, "the header says 3 words, the file holds 2."),
        ("1 2\na 1 2\nb 3 4\n", 1, "the header says 1 words, the file holds 2."),
        ("99999999999 2\na 1 2\nb 3 4\n", 1, "the header says 99,999,999,999 words, the file holds 2."),
        ("2 300\na 1 2\nb 3 4\n", 1, "the header says 300 numbers for a word, the lines hold 2."),
        ("2 2\na 1 2\nb 3\n", 3, "has 1 numbers after the word, expected 2."),
        ("", 1, "no word vectors: the file is empty."),
        ("\n \n\r\n", 1, "no word vectors: the file is empty."),
        (
            "It was the best of times,\nit was the worst of times.\n",
            1,
            "no word vectors: expected a word and its numbers",
        ),
        ("<!DOCTYPE html>\n<html><body>404</body></html>\n", 1, "no word vectors:"),
    ],
)
@pytest.mark.parametrize("block", [15, 1 << 22])
def test_an_unreadable_line_is_an_error_that_names_it(write, monkeypatch, cache_folder, content, line, says, block):
    monkeypatch.setattr(text, "_BLOCK", block)
    path = write(content)
    for cache in (True, False):
        with pytest.raises(fl.VectorFileError) as error:
            load(path, cache=cache)
        assert str(error.value).startswith(f"{path}:{line}: ")
        assert says in str(error.value)
        assert "\n" not in str(error.value)
    assert not list(cache_folder.glob("*"))
    assert not list(cache_folder.glob(".*"))


def test_the_line_is_counted_right_after_many_blocks_with_header_and_empty_lines(write, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK", 100)
    lines = ["500 2", *(f"w{row} 1 2" + "\n" * (row % 50 == 0) for row in range(400)), "bad 1 x", "c 1 2"]
    where = "\n".join(lines).split("\n").index("bad 1 x") + 1
    path = write("\n".join(lines) + "\n")
    with pytest.raises(fl.VectorFileError, match=f":{where}: number 2 of 2 is 'x'"):
        load(path)


def test_a_line_without_end_does_not_fill_the_memory(write, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK", 50)
    monkeypatch.setattr(text, "_LONGEST", 1000)
    path = write("a 1 2\n" + "x" * 5000)
    with pytest.raises(fl.VectorFileError, match="a line is longer than"):
        load(path)
