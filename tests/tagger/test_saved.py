"""A saved tagger is loaded with the same bits; a damaged or hostile folder is refused; nothing half-written is left."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import frostline as fl
from frostline import tagger
from frostline.tagger import Tagger
from frostline.tagger.saved import _json_list, check_free


@pytest.fixture(scope="module")
def trained(toy: Any) -> Tagger:
    return tagger.train(toy.train, toy.dev, toy.vectors, epochs=2, config=toy.config).tagger


@pytest.fixture
def saved(trained: Tagger, tmp_path: Path) -> Path:
    trained.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("count", [0, 1, 9_999, 10_000, 20_001])
def test_any_number_of_words_is_written_as_a_single_list(count: int) -> None:
    words = [f'w"{i}\u20ac\udc80' for i in range(count)]
    assert "".join(_json_list(words)) == json.dumps(words)


def test_loading_does_not_import_the_compiler_of_torch(saved: Path) -> None:
    script = (
        "import sys; from frostline import tagger; loaded = tagger.Tagger.load(sys.argv[1])\n"
        "print(loaded.predict([['Person3', 'sees']]), 'torch._dynamo' in sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == f"{Tagger.load(saved).predict([['Person3', 'sees']])} False\n"


def test_a_loaded_tagger_has_the_same_bits_and_predicts_the_same(toy: Any, trained: Tagger, saved: Path) -> None:
    loaded = Tagger.load(saved)
    before, after = trained.model.state_dict(), loaded.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    sentences = [tokens for tokens, _ in toy.dev] + [["unheard", "of"]]
    assert loaded.predict(sentences) == trained.predict(sentences)
    assert loaded.evaluate(toy.dev).f1 > 0
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_tagger_in_another_precision_predicts_and_is_saved_in_float32(
    toy: Any, trained: Tagger, saved: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    other = Tagger.load(saved)
    other.model.to(dtype)
    tokens = [sentence.tokens for sentence in toy.dev]
    found = other.predict(tokens)
    agree = [
        tag == same
        for pair in zip(found, trained.predict(tokens), strict=True)
        for tag, same in zip(*pair, strict=True)
    ]
    assert sum(agree) > 0.9 * len(agree)
    other.save(tmp_path / "other")
    loaded = Tagger.load(tmp_path / "other").model.state_dict()
    for name, value in trained.model.state_dict().items():
        assert torch.equal(loaded[name], value.to(dtype).float())
    assert loaded["embed.weight"].abs().sum() > 0


@pytest.fixture(scope="module")
def reading(toy: Any) -> Tagger:
    """A tagger that reads characters."""
    config = dataclasses.replace(toy.config, char_filters=6)
    return tagger.train(toy.train, toy.dev, toy.vectors, epochs=2, config=config).tagger


def test_a_tagger_that_reads_characters_is_loaded_with_its_filters(toy: Any, reading: Tagger, tmp_path: Path) -> None:
    reading.save(tmp_path / "model")
    loaded = Tagger.load(tmp_path / "model")
    before, after = reading.model.state_dict(), loaded.model.state_dict()
    assert before["char_cnn.weight"].shape == (3, 256, 6)
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    sentences = [tokens for tokens, _ in toy.dev] + [["unheard", "of", "", "\udc80"]]
    assert loaded.predict(sentences) == reading.predict(sentences)
    assert loaded.evaluate(toy.dev).f1 > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("char_cnn.weight"), "size mismatch for forwards.weight_ih_l0"),
        (lambda t: t.update({"char_cnn.weight": torch.ones(3, 256, 7)}), "size mismatch for forwards.weight_ih_l0"),
        (lambda t: t.update({"char_cnn.weight": torch.ones(3, 6)}), "size mismatch for char_cnn.weight"),
        (lambda t: t.update({"char_cnn.weight": torch.ones(3, 256, 0)}), "char_cnn.weight"),
        (lambda t: t.update({"char_cnn.weight": torch.ones(0, 10**12)}), "char_cnn.weight"),
        (lambda t: t.update({"char_cnn.weight": torch.ones(())}), "damaged: "),
        (lambda t: t["char_cnn.weight"].fill_(float("nan")), "char_cnn.weight does not hold finite float32"),
    ],
)
def test_damaged_filters_are_refused_in_one_line(
    reading: Tagger, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], says: str
) -> None:
    reading.save(tmp_path / "model")
    _tensors(change)(tmp_path / "model")
    with pytest.raises(fl.ModelFolderError, match=re.escape(says)) as caught:
        Tagger.load(tmp_path / "model")
    assert "model.safetensors: damaged: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_holds_three_files_and_the_table_has_the_learned_rows(trained: Tagger, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors", "words.json"]
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1
    table = load_file(saved / "model.safetensors")["embed.weight"]
    assert torch.equal(table, trained.model.embed.weight.detach().clone())


def test_an_earlier_tagger_is_replaced_and_nothing_else_is_left(trained: Tagger, saved: Path) -> None:
    (saved / "report.html").touch()
    (saved / "training.safetensors").touch()
    trained.save(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors", "words.json"]
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["train.conll", "second", ".git"])
def test_other_files_in_a_taggers_folder_are_not_lost(name: str, trained: Tagger, saved: Path) -> None:
    (saved / name).mkdir()
    with pytest.raises(fl.ModelFolderError, match=f"holds something other than a tagger: '{re.escape(name)}'"):
        trained.save(saved)
    assert (saved / name).is_dir()
    assert Tagger.load(saved).tags == trained.tags


def test_unfinished_files_of_a_killed_training_are_replaced_and_those_of_others_are_not(
    trained: Tagger, saved: Path
) -> None:
    for name in (".training.safetensors.0123456789abcdef.part", ".about.json.0123456789abcdef.part", ".tmpAbCdEf"):
        (saved / name).touch()
    trained.save(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors", "words.json"]
    (saved / ".notes.txt.0123456789abcdef.part").touch()
    with pytest.raises(fl.ModelFolderError, match=r"holds something other than a tagger: '\.notes"):
        trained.save(saved)


def test_a_folder_that_cannot_be_renamed_is_refused_before_training(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_free(saved)
    (tmp_path / "link").symlink_to(saved)
    with monkeypatch.context() as patch:
        patch.setattr("os.path.ismount", lambda path: Path(path) == saved)
        for path in (saved, tmp_path / "link"):
            with pytest.raises(fl.ModelFolderError, match=f"{path.name}: a mount point, or the folder you are in"):
                check_free(path)
    monkeypatch.chdir(saved)
    for path in (saved, Path()):
        with pytest.raises(fl.ModelFolderError, match="or the folder you are in, cannot be replaced"):
            check_free(path)


def test_a_tagger_is_saved_into_an_empty_folder_or_below_missing_parents(trained: Tagger, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b"):
        trained.save(path)
        assert Tagger.load(path).tags == trained.tags


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_failure_while_writing_leaves_the_old_tagger_and_nothing_else(
    error: Exception, trained: Tagger, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(*args: object) -> None:
        raise error

    monkeypatch.setattr("frostline.tagger.saved.save_file", full_disk)
    with pytest.raises(fl.ModelFolderError, match=re.escape(f"{saved}: cannot be written: ")):
        trained.save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_failure_between_the_two_renames_restores_the_old_tagger(
    trained: Tagger, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    rename = Path.rename

    def fail_to_arrive(self: Path, target: Path) -> Path:
        if target == saved and not self.name.endswith(".old"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_arrive)
    monkeypatch.setattr("frostline.files._exchange", lambda first, second: False)  # as where the system cannot
    with pytest.raises(fl.ModelFolderError, match="Permission denied"):
        trained.save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2, of Linux")
def test_a_folder_is_replaced_in_one_step(trained: Tagger, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "report.html").write_text("old", encoding="utf-8")
    renamed: list[Path] = []
    monkeypatch.setattr(Path, "rename", lambda self, target: renamed.append(self))
    trained.save(saved)
    assert not renamed  # there was no moment in which nothing had the name
    assert not (saved / "report.html").exists()
    assert Tagger.load(saved).tags == trained.tags
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_folder_or_file_of_something_else_is_never_overwritten(trained: Tagger, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep", encoding="utf-8")
    (tmp_path / "file").write_text("keep", encoding="utf-8")
    with pytest.raises(fl.ModelFolderError, match="holds something other than a tagger"):
        trained.save(tmp_path / "notes")
    for path in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(fl.ModelFolderError, match=re.escape(f"{path}: ")):
            trained.save(path)
    assert (tmp_path / "notes" / "mine.txt").read_text(encoding="utf-8") == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "notes"]


def _config(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text(encoding="utf-8")) | changes
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return change


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, path / "model.safetensors")

    return rewrite


def _cut(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-9]) and None


def _write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(data) and None


class _Hostile:
    def __reduce__(self) -> Any:
        return sys.exit, ("a pickle was executed",)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: shutil.rmtree(path), "no such folder"),
        (lambda path: (path / "config.json").unlink(), "config.json: cannot be read: No such file"),
        (lambda path: (path / "words.json").unlink(), "words.json: cannot be read: No such file"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors: damaged: No such file"),
        (_cut("config.json"), "config.json: cannot be read"),
        (_cut("words.json"), "words.json: cannot be read"),
        (_cut("model.safetensors"), "model.safetensors: damaged"),
        (_write("words.json", b"[" * 200_000), "words.json: cannot be read"),
        (_write("words.json", b"\xff\xfe\x00"), "words.json: cannot be read"),
        (_write("words.json", b"[1, 2]"), "words.json: must be a list of different strings"),
        (_write("words.json", b'["a", "b", "a"]'), "words.json: must be a list of different strings"),
        (_write("words.json", b'["one"]'), "config.json: 'missing' must be a number from 0 to 1"),
        (_write("config.json", b"[]"), "config.json: not the configuration of a frostline tagger"),
        (_write("model.safetensors", b""), "model.safetensors: damaged"),
        (_write("model.safetensors", b"\xff" * 64), "model.safetensors: damaged"),
        (_write("model.safetensors", pickle.dumps(_Hostile())), "model.safetensors: damaged"),
        (_config(kind="other"), "config.json: not the configuration"),
        (_config(format=[1] * 100_000), "config.json: format [1, 1, 1, 1, 1, 1, ...]; this version reads format 3"),
        (_config(format=2), "config.json: format 2; this version reads format 3"),
        (_config(crf=None), "'crf' must be true or false"),
        (_config(crf=False), "model.safetensors: damaged"),
        (_config(tags=["O", "O"]), "'tags' must be a list of different strings"),
        (_config(tags=[]), "'tags' must be a list of different strings"),
        (_config(tags="O"), "'tags' must be a list of different strings"),
        (_config(tags=["O", "S-x"]), "'tags' must be a list of different strings: O, B-type, I-type"),
        (_config(tags=["O", "B-x\ny"]), "'tags' must be a list of different strings: O, B-type, I-type"),
        (_config(tags=["O", "B-\x1b[31m"]), "'tags' must be a list of different strings: O, B-type, I-type"),
        (_config(tags=["O", "B-\ud800"]), "'tags' must be a list of different strings: O, B-type, I-type"),
        (_config(tags=["O", "B-x"]), "head.linear.bias has the shape (4,), and 2 tags need (2,)"),
        (_config(tags=[f"B-{i}" for i in range(300_000)]), "and 300000 tags need (300000,)"),
        (_tensors(lambda t: t.pop("head.crf.transitions")), "damaged: no tensor 'head.crf.transitions'"),
        (_tensors(lambda t: t.update({"head.crf.end": torch.ones(1)})), "model.safetensors: damaged"),
        (_tensors(lambda t: t["head.crf.start"].fill_(float("inf"))), "head.crf.start does not hold finite float32"),
        (_config(missing=-1), "'missing' must be a number from 0 to"),
        (_config(missing=True), "'missing' must be a number from 0 to"),
        (_config(missing=10**9), "'missing' must be a number from 0 to"),
        (_tensors(lambda t: t.pop("head.linear.bias")), "model.safetensors: damaged"),
        (_tensors(lambda t: t.pop("embed.weight")), "damaged: no tensor 'embed.weight'"),
        (_tensors(lambda t: t.update(more=torch.ones(1))), "model.safetensors: damaged"),
        (_tensors(lambda t: t.update({"embed.weight": torch.ones(3)})), "model.safetensors: damaged"),
        (_tensors(lambda t: t.update({"embed.weight": t["embed.weight"][:-1].clone()})), "model.safetensors: damaged"),
        (
            _tensors(lambda t: t.update({"head.linear.bias": t["head.linear.bias"].half()})),
            "head.linear.bias does not hold finite float32",
        ),
        (
            _tensors(lambda t: t["head.linear.bias"].fill_(float("nan"))),
            "head.linear.bias does not hold finite float32",
        ),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line_that_names_the_file(
    saved: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(saved)
    with pytest.raises(fl.ModelFolderError, match=re.escape(says)) as caught:
        Tagger.load(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)
