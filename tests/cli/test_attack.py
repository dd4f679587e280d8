"""`frostline attack`: what it prints, for people and for programs, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frostline import tagger
from frostline.cli import main
from frostline.vectors import Vectors

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "attack_classifier.py"
WORDS = [f"frequent{n}" for n in range(100)] + ["ada", "eve", "rome", "oslo", "sees", "loves", "visits", "likes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attack")
    matrix = np.random.default_rng(0).normal(size=(len(WORDS), 4)).astype(np.float32)
    pairs = [(("Ada", verb, "Rome"), ("B-person", "O", "B-place")) for verb in ("sees", "loves")] * 4
    config = tagger.TaggerConfig(hidden=4, shape_width=2, learning_rate=0.05)
    run = tagger.train(pairs, pairs, Vectors(WORDS, matrix), epochs=8, config=config)
    run.tagger.save(path / "model")
    (path / "dev.conll").write_text("Ada B-person\nvisits O\nRome B-place\n\nEve B-person\nlikes O\nOslo B-place\n")
    (path / "text.txt").write_text("Ada visits Rome\n\nEve likes Oslo\n")
    (path / "reviews.tsv").write_text("good\ta lovely film a great plot\nbad\ta dull cast a poor ending\n")
    return path


def test_each_sentence_is_shown_before_and_after_with_what_it_cost(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attack", str(folder / "model"), str(folder / "dev.conll"), "--columns", "--max-swaps", "1"]) == 0
    out = capsys.readouterr().out
    assert "before Ada " in out
    assert "Rome/place" in out
    assert "cost   " in out
    assert "2 sentences, " in out
    assert "entity F1" in out
    assert "sentences a second" in out


def test_programs_get_an_object_a_sentence_and_one_with_the_summary(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attack", str(folder / "model"), str(folder / "dev.conll"), "--columns", "--json"]) == 0
    *sentences, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert [sentence["before"] for sentence in sentences] == [["Ada", "visits", "Rome"], ["Eve", "likes", "Oslo"]]
    for sentence in sentences:
        after = list(sentence["before"])
        for swap in sentence["swaps"]:
            assert after[swap["position"]] == swap["before"]
            after[swap["position"]] = swap["after"]
        assert after == sentence["after"]
        assert len(sentence["predicted_after"]) == 3
        assert sentence["gold"] == ["B-person", "O", "B-place"]
        assert sentence["loss_after"] >= sentence["loss_before"]
    assert any(sentence["swaps"] for sentence in sentences)
    assert {"success", "accuracy", "accuracy_before", "f1", "f1_before", "words_changed", "passes"} < set(summary)
    changed = sum(len(sentence["swaps"]) for sentence in sentences)
    assert summary["words_changed"] == pytest.approx(changed / 6)
    assert summary["success"] == pytest.approx(
        sum(s["success"] for s in sentences) / max(1, sum(s["predicted_before"] == s["gold"] for s in sentences))
    )


def test_plain_text_is_attacked_on_its_first_prediction(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", str(folder / "model"), str(folder / "text.txt"), "--json"]) == 0
    *sentences, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert [sentence["gold"] for sentence in sentences] == [None, None]
    assert summary["accuracy_before"] == summary["f1_before"] == 1


def test_a_function_gives_any_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"{EXAMPLE}:make"
    assert main(["attack", model, str(folder / "reviews.tsv"), "--labels", "--json"]) == 0
    first, second, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["gold"], second["gold"]) == ("good", "bad")
    assert first["swaps"]
    assert "f1" not in summary
    assert summary["accuracy"] <= summary["accuracy_before"]


def test_a_pipe_in_and_out_works_from_a_shell(folder: Path) -> None:
    command = [sys.executable, "-m", "frostline", "attack", str(folder / "model"), "--json"]
    found = subprocess.run(command, input="Ada visits Rome\n", capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.splitlines()[-1])["sentences"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no/folder", "text.txt"], "no/folder: no such folder"),
        (["model", "--columns"], "--columns needs a FILE."),
        (["model", "empty.txt"], "empty.txt: no sentence in it."),
        (["model", "dev.conll", "--max-swaps", "0"], "--max-swaps"),
        (["EXAMPLE:nothing", "text.txt"], "has no function 'nothing'"),
        (["EXAMPLE:loss_of", "text.txt"], "has no function 'loss_of'"),
        (["model", "reviews.tsv", "--labels"], "right is a class of a sentence, but the model predicts tags"),
        (["EXAMPLE:make", "dev.conll", "--columns"], "right is tags of its tokens, but the model predicts a class"),
        (["EXAMPLE:make", "text.txt", "--labels"], "text.txt:1: no TAB after the class."),
        (["EXAMPLE:make", "labelled.txt", "--labels"], "'fine' is none of the classes of the model: bad, good."),
    ],
)
def test_what_cannot_be_attacked_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty.txt").write_text("\n\n")
    (folder / "labelled.txt").write_text("fine\ta film\n")
    arguments = [each.replace("EXAMPLE", str(EXAMPLE)) for each in arguments]
    assert main(["attack", *arguments]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not printed.out
