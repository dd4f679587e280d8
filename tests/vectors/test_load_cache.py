"""A file is parsed once and then opened from the cache, and a cache file that is not intact is ignored."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from frostline.vectors import load, load_cache, safetensors_file, text

CONTENT = "a 1 2\nb 3 4\na 5 6\nc 7 8\n"


@pytest.fixture
def reads(monkeypatch):
    """The paths of text files that were parsed, in order."""
    parsed = []
    original = text.read
    monkeypatch.setattr(text, "read", lambda stream, path: parsed.append(path) or original(stream, path))
    return parsed


def files_in(folder):
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_file_is_read_once_and_mapped_from_then_on(write, reads, cache_folder):
    path = write(CONTENT)
    first, second = load(path), load(str(path))
    assert len(reads) == 1
    for vectors in (first, second):
        assert list(vectors.words) == ["a", "b", "c"]
        assert vectors.matrix.tolist() == [[1, 2], [3, 4], [7, 8]]
        assert vectors.rows_of(["c", "x", "a"]).tolist() == [2, -1, 0]
        assert not vectors.matrix.flags.writeable
    assert len(files_in(cache_folder)) == 1


def test_a_file_that_changed_is_read_again_even_at_the_same_size_right_away(write, reads, cache_folder):
    for turn in range(8):
        vectors = load(write(f"a {turn} 2\nb 3 4\n"))
        assert vectors["a"].tolist() == [turn, 2]
    assert len(reads) == 8
    assert len(files_in(cache_folder)) == 1  # files of earlier states are removed


def test_the_same_content_under_another_path_is_another_file(write, reads):
    load(write(CONTENT, "one.txt"))
    load(write(CONTENT, "two.txt"))
    assert len(reads) == 2


def test_a_relative_path_and_the_absolute_one_share_a_cache_file(write, reads, monkeypatch):
    path = write(CONTENT)
    load(path)
    monkeypatch.chdir(path.parent)
    load(path.name)
    assert len(reads) == 1


def test_without_cache_nothing_is_written_and_the_answer_is_the_same(write, reads, cache_folder):
    path = write(CONTENT)
    plain = load(path, cache=False)
    assert not files_in(cache_folder)
    cached = load(path)
    assert list(plain.words) == list(cached.words)
    assert np.array_equal(plain.matrix, cached.matrix)


@pytest.mark.parametrize("offset", [0, 5, 100, 4096, 4100, -1, -10])
def test_a_byte_that_was_changed_breaks_the_seal(write, reads, cache_folder, offset):
    path = write(CONTENT)
    load(path)
    (file,) = files_in(cache_folder)
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 255
    file.write_bytes(raw)
    assert load(path).matrix.tolist() == [[1, 2], [3, 4], [7, 8]]
    assert len(reads) == 2
    assert load(path).rows_of(["c"]).tolist() == [2]
    assert len(reads) == 2  # the cache file has been replaced


@pytest.mark.parametrize("size", [0, 1, 8, 4000, 4096, 4110])
def test_a_half_written_cache_file_is_ignored_even_with_an_unbroken_seal(write, reads, cache_folder, size):
    path = write(CONTENT)
    load(path)
    (file,) = files_in(cache_folder)
    file.write_bytes(file.read_bytes()[:size])
    os.utime(file, ns=(load_cache._SEAL, load_cache._SEAL))
    assert load(path).matrix.tolist() == [[1, 2], [3, 4], [7, 8]]
    assert len(reads) == 2


def test_a_folder_that_is_not_writable_is_not_an_error(write, reads, monkeypatch, tmp_path):
    (tmp_path / "blocked").write_text("a file where the folder should be")
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "blocked"))
    for _ in range(2):
        assert load(write(CONTENT)).matrix.tolist() == [[1, 2], [3, 4], [7, 8]]
    assert len(reads) == 2


def test_a_full_disk_is_not_an_error_and_leaves_nothing_behind(write, monkeypatch, cache_folder):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file.os, "fsync", full)
    assert load(write(CONTENT)).matrix.tolist() == [[1, 2], [3, 4], [7, 8]]
    assert not files_in(cache_folder)


def test_leftovers_of_a_killed_process_are_removed_after_an_hour(write, cache_folder):
    path = write(CONTENT)
    load(path)
    (file,) = files_in(cache_folder)
    old, new = (cache_folder / f".{file.name}.{age}.part" for age in ("old", "new"))
    for part in (old, new):
        part.touch()
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    load(write(CONTENT + "d 9 9\n"))
    assert not old.exists()
    assert new.exists()


def test_many_writers_at_once_all_get_the_right_answer(write, tmp_path, cache_folder):
    path = write("".join(f"w{row} {row} 0.5\n" for row in range(20_000)))
    program = (
        "import sys; from frostline.vectors import load; v = load(sys.argv[1]);"
        "print(len(v), v['w19999'].tolist(), float(v.matrix.sum(dtype='f8')))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    printed = {process.communicate()[0].strip() for process in running}
    assert printed == {f"20000 [19999.0, 0.5] {19_999 * 10_000 + 10_000.0}"}
    assert len(files_in(cache_folder)) == 1


def test_opening_again_costs_no_more_for_many_words_than_for_few(write, reads):
    seconds = []
    for count in (10, 300_000):
        path = write("".join(f"{row} {row % 7} 1\n" for row in range(count)), f"{count}.txt")
        load(path)
        begun = time.perf_counter()
        vectors = load(path)
        seconds.append(time.perf_counter() - begun)
        assert len(vectors) == count
    assert len(reads) == 2
    assert max(seconds) < 0.05


def test_opening_the_real_file_again_takes_milliseconds(glove):
    load(glove)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        load(glove)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.05
