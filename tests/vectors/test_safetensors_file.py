"""Saved vectors load with every bit, and a damaged file is an error."""

import json

import numpy as np
import pytest

import frostline as fl
from frostline.vectors import Vectors, load, save

WORDS = ["ice", "日本", "a b", "\u00a0", "new\nline"]


def example(width=3):
    return Vectors(WORDS, np.random.default_rng(width).normal(size=(5, width)))


@pytest.mark.parametrize("width", [1, 2, 3, 50])
def test_saved_vectors_load_with_every_bit(tmp_path, cache_folder, width):
    vectors = example(width)
    path = tmp_path / "v.safetensors"
    save(vectors, path)
    again = load(path)
    assert list(again.words) == WORDS
    assert np.array_equal(again.matrix.view(np.uint32), vectors.matrix.view(np.uint32))
    assert [again.words.index(word) for word in WORDS] == [0, 1, 2, 3, 4]
    assert not again.matrix.flags.writeable
    assert [file.name for file in tmp_path.iterdir()] == ["v.safetensors"]
    assert not cache_folder.exists()


def test_the_file_is_safetensors_that_its_own_library_reads(tmp_path):
    from safetensors.numpy import load_file

    vectors = example()
    save(vectors, tmp_path / "v.safetensors")
    tensors = load_file(tmp_path / "v.safetensors")
    assert np.array_equal(tensors["matrix"], vectors.matrix)
    assert tensors["words"].tobytes() == "".join(WORDS).encode()
    assert np.diff(tensors["offsets"]).tolist() == [len(word.encode()) for word in WORDS]


def test_loaded_vectors_are_saved_like_any_others(tmp_path, write):
    with pytest.warns(UserWarning, match="1 word is listed again"):
        vectors = load(write("a 1 2\nb 3 4\na 5 6\n"))
    save(vectors, tmp_path / "v.safetensors")
    assert load(tmp_path / "v.safetensors").duplicates.total == 0
    assert list(load(tmp_path / "v.safetensors").words) == ["a", "b"]
    assert load(tmp_path / "v.safetensors").matrix.tolist() == [[1, 2], [3, 4]]


def test_saving_over_a_file_that_is_open_leaves_the_opened_vectors_intact(tmp_path):
    path = tmp_path / "v.safetensors"
    save(example(), path)
    before = load(path)
    copy = np.array(before.matrix)
    save(Vectors(["x"], [[1.0]]), path)
    assert np.array_equal(before.matrix, copy)
    assert load(path)["x"].tolist() == [1.0]


def test_a_failed_save_leaves_nothing_behind_and_the_old_file_intact(tmp_path, monkeypatch):
    from frostline.vectors import safetensors_file

    path = tmp_path / "v.safetensors"
    save(example(), path)
    before = path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file.os, "fsync", full)
    with pytest.raises(fl.VectorFileError, match="cannot be written: No space left on device"):
        save(Vectors(["x"], [[1.0]]), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["v.safetensors"]


@pytest.mark.parametrize(
    ("vectors", "name", "says"),
    [
        (Vectors(["a"], [[1]]), "v.npy", "v.npy ends in none of .safetensors (opens in milliseconds), .txt (GloVe)"),
        (Vectors(["a"], [[1]]), "none/v.safetensors", "cannot be written: No such file or directory."),
        (Vectors([], np.zeros((0, 3))), "v.safetensors", "vectors: Vectors(0 words x 3) are empty."),
    ],
)
def test_saving_fails_with_an_error_that_says_why(tmp_path, vectors, name, says):
    with pytest.raises(fl.VectorFileError) as error:
        save(vectors, tmp_path / name)
    assert says in str(error.value)
    assert not list(tmp_path.rglob("*"))


def damage(name):
    def cut(raw):
        return raw[:-1]

    def longer(raw):
        return raw + b"\0"

    def head_only(raw):
        return raw[:9]

    def huge_header(raw):
        return (2**60).to_bytes(8, "little") + raw[8:]

    def edit(change):
        def apply(raw):
            entries = json.loads(raw[8:4096])
            change(entries)
            return raw[:8] + json.dumps(entries).encode().ljust(4088) + raw[4096:]

        return apply

    def bad_index(raw):
        entries = json.loads(raw[8:4096])
        start, end = entries[name]["data_offsets"]
        return raw[: 4096 + start] + b"\x7f" * (end - start) + raw[4096 + end :]

    return {
        "cut": (cut, "damaged: its header does not fit its"),
        "longer": (longer, "damaged: its header does not fit its"),
        "head only": (head_only, "not a file that frostline wrote"),
        "huge header": (huge_header, "not a file that frostline wrote"),
        "other tensors": (edit(lambda e: e.pop("order")), "not a file that frostline wrote"),
        "other format": (edit(lambda e: e.update(__metadata__={"format": "pt"})), "not a file that frostline wrote"),
        "entry not a dict": (edit(lambda e: e.update(matrix=3)), "damaged"),
        "negative": (edit(lambda e: e["matrix"].update(shape=[-5, -3])), "damaged"),
        "fraction": (edit(lambda e: e["matrix"].update(shape=[5.0, 3.0])), "damaged"),
        "three axes": (edit(lambda e: e["matrix"].update(shape=[5, 3, 1])), "damaged"),
        "other width": (edit(lambda e: e["matrix"].update(shape=[3, 5])), "damaged"),
        "overlap": (edit(lambda e: e["words"].update(data_offsets=e["order"]["data_offsets"])), "damaged"),
        "type": (edit(lambda e: e["hashes"].update(dtype="I64")), "damaged"),
        "bad offsets": (bad_index if name == "offsets" else cut, "damaged"),
        "bad order": (bad_index if name == "order" else cut, "damaged"),
    }


@pytest.mark.parametrize("name", ["offsets", "order"])
@pytest.mark.parametrize("kind", damage("").keys())
def test_a_damaged_file_is_refused(tmp_path, kind, name):
    path = tmp_path / "v.safetensors"
    save(example(), path)
    change, says = damage(name)[kind]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(fl.VectorFileError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)


def test_safetensors_of_a_model_are_refused(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "m.safetensors")
    with pytest.raises(fl.VectorFileError, match="not a file that frostline wrote"):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("count", ["1e999", "-1", "1e3", "true", "null", str(2**70)])
def test_a_size_that_is_no_size_is_refused(tmp_path, count):
    save(example(), tmp_path / "v.safetensors")
    whole = (tmp_path / "v.safetensors").read_bytes()
    start = whole.index(b'"shape": [') + len(b'"shape": [')
    end = whole.index(b",", start)
    length = int.from_bytes(whole[:8], "little") + 8  # of the header, which is filled up with blanks
    header = (whole[:start] + count.encode() + whole[end:length].rstrip()).ljust(length)
    (tmp_path / "v.safetensors").write_bytes(header + whole[length:])
    with pytest.raises(fl.VectorFileError, match="damaged: its header does not fit"):
        load(tmp_path / "v.safetensors")


@pytest.mark.parametrize("damage", ["a character cut in two", "hashes out of order", "not UTF-8"])
def test_an_index_that_would_find_other_words_is_refused(tmp_path, damage):
    save(Vectors(["é", "ü", "b"], np.eye(3)), tmp_path / "v.safetensors")
    found = load(tmp_path / "v.safetensors")
    offsets, hashes, words = (np.array(each) for each in (found.words.offsets, found.words.hashes, found.words.blob))
    raw = bytearray((tmp_path / "v.safetensors").read_bytes())

    def put(old, new):
        at = raw.index(old.tobytes())
        raw[at : at + old.nbytes] = new.tobytes()

    if damage == "a character cut in two":
        put(offsets, np.array([0, 1, 4, 5]))
    elif damage == "hashes out of order":
        put(hashes, hashes[::-1].copy())
    else:
        put(words, np.array([0xC3, 0xC3, 0xC3, 0xBC, 98], dtype="u1"))
    (tmp_path / "v.safetensors").write_bytes(raw)
    with pytest.raises(fl.VectorFileError, match="damaged: its index of words is invalid"):
        load(tmp_path / "v.safetensors")
