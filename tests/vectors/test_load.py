"""The format of a file is detected from its content, and a file of another kind is an error that says what to do."""

import gzip
import os
import pickle

import numpy as np
import pytest

import frostline as fl
from frostline.vectors import load

TEXT = b"".join(b"word%d 0.25 -1.5 %d\n" % (row, row) for row in range(2000))


def test_a_gzip_file_is_detected_by_its_content_whatever_its_name(write):
    for name in ("v.txt.gz", "v.vec.gz", "v.txt", "v"):
        vectors = load(write(gzip.compress(TEXT), name))
        assert len(vectors) == 2000
        assert vectors["word7"].tolist() == [0.25, -1.5, 7]


def test_several_gzip_members_are_one_file(write):
    assert len(load(write(gzip.compress(TEXT[:18_000]) + gzip.compress(TEXT[18_000:]), "v.gz"))) == 2000


@pytest.mark.parametrize("cut", [5, 9, 30, 0.5, -9, -1])
def test_a_gzip_file_that_ends_early_is_refused(write, cache_folder, cut):
    packed = gzip.compress(TEXT)
    path = write(packed[: int(len(packed) * cut) if isinstance(cut, float) else cut], "v.txt.gz")
    for cache in (True, False):
        with pytest.raises(
            fl.VectorFileError, match=r"v\.txt\.gz: the gzip file is cut off or damaged .* Download it again"
        ):
            load(path, cache=cache)
    assert not list(cache_folder.iterdir())


def test_a_gzip_file_with_a_wrong_byte_is_refused(write):
    packed = bytearray(gzip.compress(TEXT))
    packed[len(packed) // 2] ^= 255
    with pytest.raises(fl.VectorFileError):
        load(write(bytes(packed), "v.gz"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ((793712314).to_bytes(4, "little") + bytes(100), "is a fastText .bin model. Pass the .vec file"),
        (pickle.dumps({"a": 1}), "is a pickle, which is never loaded."),
        (b"BZh91AY&SY" + bytes(50), "is packed with bzip2."),
        (b"\xfd7zXZ\x00" + bytes(50), "is packed with xz."),
        (b"\x93NUMPY\x01\x00v\x00", "is a numpy array without words."),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "no word vectors"),
        (bytes(5000), "no word vectors"),
    ],
)
@pytest.mark.parametrize("name", ["v.bin", "v.txt"])
def test_a_file_that_is_something_else_is_an_error_that_says_what_to_do(write, content, says, name):
    path = write(content, name)
    with pytest.raises(fl.VectorFileError) as error:
        load(path)
    assert str(error.value).startswith(str(path))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_random_bytes_are_refused_and_never_crash(write):
    draw = np.random.default_rng(0)
    for size in (1, 2, 10, 100, 10_000):
        for start in (b"", b"3 2\n", b"a 1 2\n"):
            with pytest.raises(fl.VectorFileError):
                load(write(start + draw.bytes(size)), cache=False)


def test_a_path_that_cannot_be_opened_is_one_line(tmp_path):
    for path, why in ((tmp_path / "none.txt", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(fl.VectorFileError) as error:
            load(path)
        assert str(error.value) == f"{path}: cannot be opened: {why}. Check the path."


def test_a_pipe_is_refused_before_anything_is_taken_from_it():
    out, into = os.pipe()
    os.write(into, b"ice 1 2\n")
    os.close(into)
    with pytest.raises(fl.VectorFileError) as error:
        load(f"/dev/fd/{out}")
    says = f"/dev/fd/{out}: a pipe, which can be read only once. Write it to a file, and pass that."
    assert str(error.value) == says
    assert os.read(out, 99) == b"ice 1 2\n"
    os.close(out)


def test_a_file_that_changes_while_it_is_read_is_an_error_and_not_cached(write, monkeypatch, cache_folder):
    from frostline.vectors import text

    path = write("a 1 2\nb 3 4\n")
    original = text.read

    def read(stream, name):
        yield from original(stream, name)
        path.write_text("a 5 6\nb 7 8\nc 9 9\n")

    monkeypatch.setattr(text, "read", read)
    with pytest.raises(fl.VectorFileError, match="changed while it was read"):
        load(path)
    assert not list(cache_folder.iterdir())


def test_the_complete_real_file_agrees_with_the_slow_reader(glove):
    vectors = load(glove)
    with gzip.open(glove, "rt", encoding="utf-8", newline="\n") as file:
        lines = [line.rstrip("\n").split(" ") for line in file]
    assert list(vectors.words) == [line[0] for line in lines]
    some = range(0, len(lines), 40)
    assert np.array_equal(vectors.matrix[some], np.array([line[1:] for line in lines[::40]], np.float64).astype("f4"))
    assert vectors.matrix.shape == (400_000, 50)
    assert vectors.rows_of(["the", "unk", "THE"], lowercase=True).tolist() == [0, 201_534, 0]
