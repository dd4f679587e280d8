"""A text becomes a file of ids, whole or not at all; what cannot be read is named with its line."""

import errno
import gzip
import io
import os
import re
import shutil
from collections import Counter, namedtuple

import pytest

import frostline as fl
from frostline.word2vec import corpus as module
from frostline.word2vec.corpus import read_corpus, write_corpus

TEXT = "the ice the snow\nthe ice rare\n\nsnow the ice\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def decoded(corpus):
    """Return the lines of a corpus."""
    lines = [[]]
    for index in corpus.ids.tolist():
        if index < 0:
            lines.append([])
        else:
            lines[-1].append(corpus.words[index])
    return lines[:-1]


def test_ids_give_back_the_text_without_its_rare_words(backend, file, folder):
    corpus = write_corpus(file, folder, min_count=2)
    assert decoded(corpus) == [["the", "ice", "the", "snow"], ["the", "ice"], ["snow", "the", "ice"]]
    assert dict(zip(corpus.words, corpus.counts.tolist(), strict=True)) == {"the": 4, "ice": 3, "snow": 2}
    assert corpus.words[0] == "the"
    assert corpus.size == 9


def test_gzip_standard_input_lists_and_another_opening_give_the_same(backend, file, folder, tmp_path, monkeypatch):
    plain = write_corpus(file, folder, 1)
    (tmp_path / "text.gz").write_bytes(gzip.compress(file.read_bytes()))
    for text in (tmp_path / "text.gz", str(tmp_path / "text.gz"), "-", [line.split() for line in TEXT.split("\n")]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(TEXT.encode()))))
        other = write_corpus(text, folder, 1)
        assert (other.words, other.ids.tolist()) == (plain.words, plain.ids.tolist())
    again = read_corpus(folder)
    assert (again.words, again.ids.tolist(), again.counts.tolist()) == (
        plain.words,
        plain.ids.tolist(),
        plain.counts.tolist(),
    )


def test_a_line_of_any_length_is_read_whole(backend, tmp_path, folder):
    words = [f"w{index % 700}" for index in range(200_000)]
    (tmp_path / "long.txt").write_text(" ".join(words))
    corpus = write_corpus(tmp_path / "long.txt", folder, 1)
    assert decoded(corpus) == [words]


def test_a_line_that_loses_all_its_words_leaves_no_mark(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)  # so that such lines are at the ends of chunks, too
    text = "a a\nb\nc\na\nd\n"
    (tmp_path / "text.txt").write_text(text)
    assert write_corpus(tmp_path / "text.txt", folder, 2).ids.tolist() == [0, 0, -1, 0, -1]


def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path, folder):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfice ice")
    assert write_corpus(tmp_path / "text.txt", folder, 1).words == ["ice"]


@pytest.mark.parametrize(
    ("content", "min_count", "says"),
    [
        (b"", 1, "text.txt: holds no words"),
        (b" \n\n", 1, "text.txt: holds no words"),
        (b"ice snow ice", 5, "none of its 2 words occurs 5 times; the most frequent, 'ice', occurs 2 times"),
        (b"ice\nsn\xe9w\n", 1, "text.txt:2: not UTF-8"),
        (gzip.compress(b"ice " * 9999, mtime=0)[:-20], 1, "text.txt: the gzip file is cut off"),
        (b"\x1f\x8bxx", 1, "text.txt: the gzip file is cut off or damaged"),
    ],
)
def test_a_bad_text_is_one_line_and_leaves_nothing(backend, tmp_path, folder, content, min_count, says):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(fl.DataFileError, match=re.escape(says)):
        write_corpus(tmp_path / "text.txt", folder, min_count)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ([["ice", ""]], fl.DataFileError, "a word is empty or has whitespace"),
        ([["ice cream"]], fl.DataFileError, "a word is empty or has whitespace"),
        (["ice cream"], TypeError, "expected a path or lists of words, got 'ice cream'"),
        ([[1, 2]], TypeError, "expected a path or lists of words"),
        ([["\ud800"]], fl.DataFileError, "not UTF-8"),
        ("no/such/file", fl.DataFileError, "no/such/file: cannot be opened: No such file"),
    ],
)
def test_bad_lists_and_paths_are_named(folder, text, error, says):
    with pytest.raises(error, match=re.escape(says)):
        write_corpus(text, folder, 1)
    assert list(folder.iterdir()) == []


def test_a_text_that_changes_while_it_is_read_is_refused(file, folder):
    def append(done):
        if file.read_text() == TEXT:
            file.write_text(f"{TEXT}more\n")

    with pytest.raises(fl.DataFileError, match="changed while it was read"):
        write_corpus(file, folder, 1, read=append)
    assert list(folder.iterdir()) == []


def test_a_disk_without_room_is_noticed_before_it_is_full(tmp_path, folder, monkeypatch):
    (tmp_path / "text.txt").write_text("ice snow rain\n" * 400_000)  # 5.6 MB; 6.4 MB as ids
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 3_000_000))
    with pytest.raises(fl.DataFileError, match=r"needs 0.0\d GB more, and the disk has 0.00 GB. Make room"):
        write_corpus(tmp_path / "text.txt", folder, 1)
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 8_000_000))
    assert write_corpus(tmp_path / "text.txt", folder, 1).size == 1_200_000


def test_a_disk_that_fills_all_the_same_is_one_line(file, folder, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(fl.DataFileError, match="cannot be written: No space left on device"):
        write_corpus(file, folder, 1)
    assert list(folder.iterdir()) == []


def test_a_damaged_corpus_is_refused(file, folder):
    write_corpus(file, folder, 1)
    (folder / "text.ids").write_bytes((folder / "text.ids").read_bytes()[:12])
    with pytest.raises(fl.RunFolderError, match="damaged"):
        read_corpus(folder)
    (folder / "text.json").write_text("{")
    with pytest.raises(fl.RunFolderError, match="holds no encoded text"):
        read_corpus(folder)


def test_counts_are_those_of_the_text(backend, tmp_path, folder):
    words = [f"w{(index * index) % 97}" for index in range(5000)]
    corpus = write_corpus([words[start : start + 9] for start in range(0, 5000, 9)], folder, 1)
    assert dict(zip(corpus.words, corpus.counts.tolist(), strict=True)) == Counter(words)
    assert corpus.counts.tolist() == sorted(corpus.counts.tolist(), reverse=True)
