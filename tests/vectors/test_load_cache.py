"""A file is parsed once and then opened from the cache, and a cache file that is not intact is ignored."""

import os
import pwd
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import frostline as fl
from frostline.vectors import Vectors, cached_files, clear_cache, load, load_cache, safetensors_file, save, text

pytestmark = pytest.mark.filterwarnings("ignore:.*listed again with another vector")
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


DATE = 1_577_836_800 * 10**9  # 2020-01-01, as in archives that are built twice to the same bytes


def set_date(path):
    os.utime(path, ns=(DATE, DATE))
    return path


REPLACE = {
    "mv": lambda new, old: new.replace(old),
    "cp -p": lambda new, old: shutil.copy2(new, old),
    "cp -p to a file that was removed": lambda new, old: (old.unlink(), shutil.copy2(new, old)),
    "written in place, then the old date": lambda new, old: (old.write_bytes(new.read_bytes()), set_date(old)),
    "a link turned to another file": lambda new, old: (old.unlink(), old.symlink_to(new)),
}


@pytest.mark.parametrize("size", [30, 3_000_000], ids=["small", "large"])
@pytest.mark.parametrize("replace", REPLACE.values(), ids=REPLACE)
def test_a_file_replaced_by_another_of_the_same_size_and_date_is_read_again(write, reads, replace, size):
    def content(first):
        return f"a {first} 2.0\n" + "".join(f"w{row:07d} 3.5 4.5\n" for row in range(size // 17)) + f"z {first} 8.0\n"

    path = set_date(write(content("1.0")))
    assert load(path)["z"].tolist() == [1, 8]
    other = set_date(write(content("9.0"), "other.txt"))
    before = path.stat()
    replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert load(path)["a"].tolist() == [9, 2]
    assert load(path)["z"].tolist() == [9, 8]
    assert len(reads) == 2


def test_where_inodes_and_times_mean_nothing_the_content_decides(write, reads, monkeypatch):
    monkeypatch.setattr(load_cache.CacheEntry, "_read_times", lambda self: (0, 0, 0, 0))
    for first in (1, 2, 3):
        assert load(write(f"a {first} 2\nb 3 4\n"))["a"].tolist() == [first, 2]
    assert len(reads) == 3


def test_a_folder_that_others_can_write_to_is_not_used_and_said(write, reads, cache_folder):
    path = write("ice 1 0\n")
    load(path)
    (file,) = files_in(cache_folder)
    save(Vectors(["ice"], [[666, 666]]), cache_folder / "planted.safetensors")
    (cache_folder / "planted.safetensors").replace(file)
    os.utime(file, ns=(load_cache._SEAL, load_cache._SEAL))
    for mode in (0o777, 0o770, 0o1777):
        cache_folder.chmod(mode)
        with pytest.warns(UserWarning, match="the cache of word vectors is not used, because others can write to it"):
            assert load(path)["ice"].tolist() == [1, 0]
    assert len(reads) == 4


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_a_cache_file_that_others_can_write_to_is_not_used(write, reads, cache_folder, mode):
    path = write("ice 1 0\n")
    load(path)
    (file,) = files_in(cache_folder)
    file.chmod(mode)
    assert load(path)["ice"].tolist() == [1, 0]
    assert len(reads) == 2
    assert file.stat().st_mode & 0o777 == 0o600  # written again
    load(path)
    assert len(reads) == 2


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs CUDA or root: gives files away")
@pytest.mark.parametrize("owned", ["file", "folder"])
def test_a_cache_of_another_user_is_not_used(write, reads, cache_folder, owned):
    path = write("ice 1 0\n")
    load(path)
    os.chown(cache_folder if owned == "folder" else files_in(cache_folder)[0], 12345, 12345)
    if owned == "folder":
        with pytest.warns(UserWarning, match="others can write to it"):
            load(path)
    else:
        load(path)
    assert len(reads) == 2


def test_a_cache_file_under_the_name_of_another_is_not_used(write, reads, cache_folder):
    one, two = write("ice 1 0\n", "one.txt"), write("ice 2 0\n", "two.txt")
    load(one)
    (first,) = files_in(cache_folder)
    load(two)
    (second,) = set(files_in(cache_folder)) - {first}
    shutil.copy2(first, second)
    assert load(two)["ice"].tolist() == [2, 0]
    assert len(reads) == 3


def test_cache_files_of_sources_that_are_gone_are_removed_when_one_is_added(write, cache_folder):
    gone, kept, new = (write(CONTENT, name) for name in ("gone.txt", "kept.txt", "new.txt"))
    load(gone)
    load(kept)
    gone.unlink()
    assert len(files_in(cache_folder)) == 2
    load(new)
    assert {file.source for file in cached_files()} == {kept, new}


def test_the_cache_keeps_what_was_opened_last_within_its_bound(write, cache_folder, monkeypatch):
    monkeypatch.setattr(load_cache, "_MOST_BYTES", 30_000)  # three files of 8 kB
    paths = [write(CONTENT, f"{name}.txt") for name in "abcd"]
    for path in paths[:3]:
        load(path)
        time.sleep(0.02)
    load(paths[0])
    time.sleep(0.02)
    load(paths[3])
    assert [file.source for file in cached_files()] == [paths[3], paths[0], paths[2]]
    monkeypatch.setattr(load_cache, "_MOST_BYTES", 1)
    load(paths[1])
    assert [file.source for file in cached_files()] == [paths[1]]  # the one that is in use stays


def test_clearing_the_cache_removes_its_files_and_nothing_else(write, cache_folder):
    vectors = load(write(CONTENT))
    (cache_folder / "mine.safetensors").write_text("not a file of the cache")
    (cached,) = cached_files()
    assert clear_cache() == cached.bytes
    assert [path.name for path in files_in(cache_folder)] == ["mine.safetensors"]
    assert cached_files() == []
    assert vectors["c"].tolist() == [7, 8]  # still mapped


def test_without_a_home_folder_files_are_read_each_time(write, reads, monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "FROSTLINE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for _ in range(2):
        assert load(write(CONTENT))["a"].tolist() == [1, 2]
    assert len(reads) == 2
    assert (cached_files(), clear_cache()) == ([], 0)


def test_a_very_long_path_is_cached_like_any_other(tmp_path, reads):
    folder = tmp_path
    while len(str(folder)) < 3_600:
        folder = folder / ("\udcff" * 120)  # not UTF-8: six characters of JSON each
    folder.mkdir(parents=True)
    path = folder / "v.txt"
    path.write_text(CONTENT)
    for _ in range(2):
        assert load(path)["c"].tolist() == [7, 8]
    assert len(reads) == 1


@pytest.mark.parametrize("cache", [False, True])
def test_words_with_two_vectors_are_counted_and_said_at_every_loading(write, cache):
    content = "a 1 2\na 1 2\nb 3 4\na 5 6\nc 7 8\nb 9 9\na -0 1\n"
    for _ in range(2):
        with pytest.warns(UserWarning, match="listed again") as said:
            vectors = load(write(content), cache=cache)
        (warning,) = said
        says = "v.txt: 3 words are listed again with another vector: 'a', 'b', .... The first vector of each is used."
        assert str(warning.message).endswith(says.replace("v.txt", "vectors.txt"))
        assert warning.filename == __file__
        assert vectors.duplicates == (4, 3, ("a", "b"))
        assert vectors.matrix.tolist() == [[1, 2], [3, 4], [7, 8]]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.filterwarnings("error")
def test_words_listed_again_with_the_same_vector_are_counted_without_a_warning(write, cache):
    for _ in range(2):
        assert load(write("a 1 2\nb 3 4\na 1 2\n"), cache=cache).duplicates == (1, 0, ("a",))
        assert load(write("a 1 2\nb 3 4\n", "none.txt"), cache=cache).duplicates == (0, 0, ())


@pytest.mark.parametrize("count", [3, 9_000])
def test_many_and_long_repeated_words_are_shown_in_short(write, count):
    words = [f"{row}{'ü' * 30_000 if row < 6 else ''}" for row in range(count)]
    content = "".join(f"{word} {turn} 1\n" for turn in (1, 2) for word in words)
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"{count:,} words are listed again"):
            duplicates = load(write(content)).duplicates
        assert duplicates.conflicting == count
        assert [len(word) for word in duplicates.first] == [40] * min(count, 5)


KILLED = """
import sys, numpy as np
import frostline as fl
from frostline.files import replacing
from pathlib import Path
word = sys.argv[2]
matrix = np.random.default_rng(0).normal(size=(20_000, 20)).astype("f4")
vectors = fl.vectors.Vectors([f"{word}{row}" for row in range(20_000)], matrix)
print("ready", flush=True)
while True:
    fl.vectors.save(vectors, sys.argv[1])
"""


@pytest.mark.parametrize("name", ["v.safetensors", "v.bin"])
def test_a_file_whose_writer_is_killed_is_the_old_one_or_the_new_one(tmp_path, name):
    path = tmp_path / name
    for turn in range(2):
        command = [sys.executable, "-c", KILLED, str(path), f"turn{turn}-"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "ready\n"
            time.sleep(0.15 + 0.1 * turn)
            writer.kill()
        if path.exists():
            vectors = load(path, cache=False)
            assert len(vectors) == 20_000
            assert vectors.words[19_999].endswith("-19999")
    assert path.exists()
    assert isinstance(fl.vectors.load(path), Vectors)
