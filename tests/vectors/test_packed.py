"""Files in a zip archive are read like any other; of several one must be named."""

import gzip
import io
import zipfile

import numpy as np
import pytest

import frostline as fl
from frostline.vectors import load
from frostline.vectors.packed import split_member

TEXT = b"".join(b"word%d 0.25 -1.5 %d\n" % (row, row) for row in range(20_000))
OTHER = b"ice 1 2\nsnow 3 4\n"


def zipped(files, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", ["v.zip", "v.txt"])
def test_an_archive_of_one_file_is_that_file(write, method, name):
    path = write(zipped({"folder/v.txt": TEXT}, method), name)
    for cache in (False, True, True):
        vectors = load(path, cache=cache)
        assert len(vectors) == 20_000
        assert vectors["word7"].tolist() == [0.25, -1.5, 7]


def test_files_that_a_system_adds_do_not_count(write):
    files = {"v/": b"", "v/v.txt": OTHER, "__MACOSX/v/._v.txt": b"\0\5\x16\7", "v/.DS_Store": b"\0\0\0\1Bud1"}
    assert load(write(zipped(files), "v.zip"))["snow"].tolist() == [3, 4]


def test_of_several_files_one_is_named_and_each_is_cached_for_itself(write, cache_folder):
    path = write(zipped({"a.txt": TEXT, "b.vec": b"2 2\n" + OTHER}), "v.zip")
    for _ in range(2):
        assert len(load(path, member="a.txt")) == 20_000
        assert load(path, member="b.vec")["ice"].tolist() == [1, 2]
    assert len(list(cache_folder.iterdir())) == 2
    with pytest.raises(fl.VectorFileError) as error:
        load(path)
    assert str(error.value) == (
        f"{path}: the zip archive holds 2 files: a.txt, b.vec. "
        f"Name one: load(path, member='a.txt'), or {path}:a.txt on the command line."
    )
    with pytest.raises(fl.VectorFileError, match=r"has no member 'c.txt', but a.txt, b.vec. Name one of these."):
        load(path, member="c.txt")


def test_the_binary_form_and_gzip_are_read_inside_an_archive_too(write):
    matrix = np.array([[1, 2], [3, 4]], dtype="<f4")
    binary = b"2 2\n" + b"".join(word + b" " + row.tobytes() for word, row in zip([b"a", b"b"], matrix, strict=True))
    for content in (binary, gzip.compress(OTHER)):
        if content is binary:
            assert load(write(zipped({"v.bin": content}), "v.zip")).matrix.tolist() == [[1, 2], [3, 4]]
        else:
            with pytest.raises(fl.VectorFileError, match=r"v\.zip"):
                load(write(zipped({"v.gz": content}), "v.zip"))


def test_a_bad_line_of_a_member_is_named_with_archive_and_member(write):
    path = write(zipped({"v.txt": OTHER + b"rain 5 x\n"}), "v.zip")
    with pytest.raises(fl.VectorFileError) as error:
        load(path, member="v.txt")
    assert str(error.value).startswith(f"{path}:v.txt:3: number 2 of 2 is 'x'")


@pytest.mark.parametrize("keep", [10, 0.3, 0.9, -30, -1])
def test_an_archive_that_is_cut_off_is_refused(write, keep):
    packed = zipped({"v.txt": TEXT})
    path = write(packed[: int(len(packed) * keep) if isinstance(keep, float) else keep], "v.zip")
    with pytest.raises(fl.VectorFileError, match=r"v\.zip: the zip archive cannot be read"):
        load(path)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_with_a_wrong_byte_is_refused(write, at, method):
    packed = bytearray(zipped({"v.txt": TEXT}, method))
    packed[int(len(packed) * at)] ^= 1
    with pytest.raises(fl.VectorFileError):
        load(write(bytes(packed), "v.zip"))


def test_an_archive_without_files_and_a_member_of_a_plain_file_are_refused(write):
    with pytest.raises(fl.VectorFileError, match=r"the zip archive cannot be read|is empty"):
        load(write(zipped({"folder/": b""}), "v.zip"))
    with pytest.raises(fl.VectorFileError, match=r"is not a zip archive, so it has no member 'a.txt'. Leave it out."):
        load(write(OTHER), member="a.txt")


def test_a_file_with_a_password_is_refused(write):
    packed = bytearray(zipped({"v.txt": OTHER}))
    packed[6] |= 1  # the flag of encryption, in both headers
    packed[packed.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(fl.VectorFileError, match="is encrypted"):
        load(write(bytes(packed), "v.zip"))


def test_a_name_of_archive_and_member_is_split_unless_there_is_such_a_file(write, tmp_path):
    assert split_member("a/GloVe.ZIP:b/c.txt") == ("a/GloVe.ZIP", "b/c.txt")
    assert split_member("glove.zip") == ("glove.zip", None)
    path = str(write(OTHER, "odd.zip:name"))
    assert split_member(path) == (path, None)
