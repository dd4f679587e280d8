"""Vectors are written in the formats of GloVe and word2vec, and read back bit by bit, here and by gensim."""

import re

import numpy as np
import pytest

import frostline as fl
from frostline.cli import main
from frostline.vectors import Vectors, load, save

WORDS = ["ice", "été", "日本", "1990", "a-b", '"quoted"', "#x", "NA", "nan"]


def example(words=WORDS, seed=0):
    draw = np.random.default_rng(seed)
    matrix = draw.normal(size=(len(words), 4)).astype(np.float32) * 10.0 ** draw.integers(-12, 12, (len(words), 4))
    matrix[0] = [0.0, -0.0, 1.0, np.finfo(np.float32).tiny / 8]
    return Vectors(words, matrix.astype(np.float32))


def bits(matrix):
    return np.ascontiguousarray(matrix).view(np.uint32)


@pytest.mark.parametrize("name", ["v.txt", "v.vec", "v.bin", "v.safetensors"])
@pytest.mark.usefixtures("parser")
def test_what_is_written_is_read_back_bit_by_bit(tmp_path, name):
    vectors = example()
    save(vectors, tmp_path / name)
    again = load(tmp_path / name, cache=False)
    assert again.words == WORDS
    assert np.array_equal(bits(again.matrix), bits(vectors.matrix))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("parser")
def test_any_float32_keeps_its_bits_in_text(tmp_path):
    draw = np.random.default_rng(1)
    anything = draw.integers(0, 2**32, 60_000, dtype=np.uint32).view(np.float32)
    matrix = anything[np.isfinite(anything)][:50_000].reshape(-1, 10)
    save(Vectors([f"w{row}" for row in range(len(matrix))], matrix), tmp_path / "v.txt")
    assert np.array_equal(bits(load(tmp_path / "v.txt", cache=False).matrix), bits(matrix))


@pytest.mark.parametrize(("name", "options"), [("v.vec", {}), ("v.bin", {"binary": True})])
def test_gensim_reads_the_same(tmp_path, name, options):
    gensim = pytest.importorskip("gensim.models")
    vectors = example()
    save(vectors, tmp_path / name)
    theirs = gensim.KeyedVectors.load_word2vec_format(str(tmp_path / name), **options)
    assert theirs.index_to_key == WORDS
    assert np.array_equal(bits(theirs.vectors), bits(vectors.matrix))


def test_the_formats_are_those_that_people_know(tmp_path):
    vectors = Vectors(["ice", "snow"], [[1, 0.1], [-2.5, 3e-7]])
    for name in ("v.txt", "v.vec", "v.bin"):
        save(vectors, tmp_path / name)
    lines = "ice 1.0 0.1\nsnow -2.5 3e-7\n"
    assert (tmp_path / "v.txt").read_text().replace("3e-07", "3e-7") == lines
    assert (tmp_path / "v.vec").read_text().replace("3e-07", "3e-7") == "2 2\n" + lines
    rows = [np.array(row, dtype="<f4").tobytes() for row in vectors.matrix]
    assert (tmp_path / "v.bin").read_bytes() == b"2 2\nice " + rows[0] + b"\nsnow " + rows[1] + b"\n"


@pytest.mark.parametrize(
    ("word", "formats"),
    [
        ("new york", ["v.vec", "v.bin"]),
        ("new\tyork", ["v.vec"]),
        ("windows 95", ["v.txt", "v.vec", "v.bin"]),
        (" x", ["v.txt", "v.vec", "v.bin"]),
        ("a\nb", ["v.txt", "v.vec"]),
        ("\nb", ["v.txt", "v.vec", "v.bin"]),
        ("", ["v.txt", "v.vec", "v.bin"]),
        ("\ud800", ["v.txt", "v.vec", "v.bin"]),
    ],
)
def test_a_word_that_a_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path, word, formats):
    vectors = Vectors(["ice", word, "snow"], np.eye(3))
    for name in ("v.txt", "v.vec", "v.bin", "v.safetensors"):
        (tmp_path / name).write_text("old")
        if name not in formats:
            save(vectors, tmp_path / name)
            assert load(tmp_path / name, cache=False).words == ["ice", word, "snow"]
            continue
        with pytest.raises(fl.VectorFileError, match=re.escape(f"{name}: would not be read back as it is: ")):
            save(vectors, tmp_path / name)
        assert (tmp_path / name).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("v.txt", "v.safetensors"):
        (tmp_path / name).symlink_to(tmp_path / "folder" / name)
        save(example(), tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert load(tmp_path / "folder" / name).words == WORDS


def test_a_large_file_is_written_in_blocks(tmp_path, monkeypatch):
    from frostline.vectors import safetensors_file

    monkeypatch.setattr(safetensors_file, "_ROWS", 7)
    matrix = np.arange(200, dtype=np.float32).reshape(100, 2)
    for name in ("v.txt", "v.bin"):
        save(Vectors([f"w{row}" for row in range(100)], matrix), tmp_path / name)
        assert np.array_equal(load(tmp_path / name).matrix, matrix)


def test_the_command_converts_between_formats(tmp_path):
    save(example(), tmp_path / "v.txt")
    for source, target in (("v.txt", "v.bin"), ("v.bin", "v.vec"), ("v.vec", "w.txt")):
        assert main(["vectors", "convert", str(tmp_path / source), str(tmp_path / target)]) == 0
    assert (tmp_path / "w.txt").read_bytes() == (tmp_path / "v.txt").read_bytes()
