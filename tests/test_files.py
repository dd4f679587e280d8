"""A file is replaced whole or not at all, and no temporary file is left."""

import os
import stat
import sys
from pathlib import Path

import pytest

from frostline.files import cache_folder, replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_appears_with_its_content_when_the_block_ends(tmp_path):
    path = tmp_path / "page.html"
    with replacing(path) as unfinished:
        unfinished.write_text("done")
        assert not path.exists()
        assert unfinished.parent == tmp_path
    assert path.read_text() == "done"
    assert names(tmp_path) == ["page.html"]


def test_a_reader_sees_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with replacing(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("wrong"), KeyboardInterrupt()])
def test_after_an_error_the_old_file_is_intact_and_nothing_is_left(error, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")

    def write():
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["page.html"]


def test_a_missing_folder_raises_and_is_not_made(tmp_path):
    def write():
        with replacing(tmp_path / "no" / "page.html"):
            pytest.fail("the block ran")

    with pytest.raises(FileNotFoundError):
        write()
    assert names(tmp_path) == []


def test_a_folder_in_the_place_of_the_file_raises_and_stays(tmp_path):
    (tmp_path / "page.html").mkdir()

    def write():
        with replacing(tmp_path / "page.html") as unfinished:
            unfinished.write_text("new")

    with pytest.raises(OSError, match=r"page\.html"):
        write()
    assert names(tmp_path) == ["page.html"]


@pytest.mark.skipif(os.name == "nt", reason="files have no such permissions there")
def test_the_permissions_are_those_of_a_new_file_whatever_the_writer_sets(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "page.html"
    plain.touch()
    with replacing(path) as unfinished:
        unfinished.write_text("done")
        unfinished.chmod(0o600)
    assert mode_of(path) == mode_of(plain)


@pytest.mark.skipif(os.name == "nt", reason="files have no such permissions there")
@pytest.mark.parametrize("mode", [0o600, 0o444])
def test_the_permissions_are_those_that_are_asked_for(mode, tmp_path):
    path = tmp_path / "page.html"
    with replacing(path, mode=mode) as unfinished:
        unfinished.write_text("done")
    assert mode_of(path) == mode


def test_a_relative_path_is_written_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with replacing(Path("page.html")) as unfinished:
        unfinished.write_text("done")
    assert names(tmp_path) == ["page.html"]


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as unfinished:
        unfinished.write_text("new")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("old", "new", False)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_the_longest_name_a_disk_takes_can_be_written(name, tmp_path):
    with replacing(tmp_path / name) as unfinished:
        unfinished.write_text("done")
    assert names(tmp_path) == [name]


def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path):
    path = tmp_path / "page.html"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last
    assert names(tmp_path) == ["page.html"]


def test_the_cache_folder_is_that_of_the_variable_and_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "own"))
    assert cache_folder("vectors") == tmp_path / "own" / "vectors"
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="another folder there")
@pytest.mark.parametrize(("base", "expected"), [("/base", "/base"), ("relative", "/home/.cache"), ("", "/home/.cache")])
def test_without_the_variable_the_cache_folder_is_that_of_the_system(base, expected, monkeypatch):
    monkeypatch.delenv("FROSTLINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setattr(Path, "home", lambda: Path("/home"))
    assert cache_folder("vectors") == Path(expected) / "frostline" / "vectors"
