"""`frostline tagger` from files to a folder and back; wrong input gets one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from frostline import tagger
from frostline.cli import main
from frostline.record import read_run
from frostline.tagger import read_conll
from frostline.tagger.training.callbacks import Progress


def _write(folder: Path) -> SimpleNamespace:
    dice = random.Random(0)
    towns = {f"town{i}": [2.0 + dice.random(), dice.random(), 0.0] for i in range(20)}
    plain = {word: [-2.0, dice.random(), 1.0] for word in ["we", "left", "for", "reached", "and", "slept", "."]}

    def sentences(names: list[str]) -> str:
        lines = []
        for _ in range(60):
            town = dice.choice([*names, "nowhere"])
            tagged = [("We", "O"), (dice.choice(["left", "reached"]), "O"), (town.title(), "B-town"), (".", "O")]
            lines += [f"{token}\t{tag}\n" for token, tag in tagged] + ["\n"]
        return "".join(lines)

    files = SimpleNamespace(train=folder / "train.conll", dev=folder / "dev.conll", vectors=folder / "toy.txt")
    files.train.write_text(sentences(list(towns)[:10]), encoding="utf-8")
    files.dev.write_text(sentences(list(towns)[10:]), encoding="utf-8")
    files.vectors.write_text(
        "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in (towns | plain).items()), encoding="utf-8"
    )
    files.out = folder / "model"
    return files


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FROSTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def real_data(pytestconfig: pytest.Config) -> Path:
    path = Path(os.environ.get("FROSTLINE_SHARED") or pytestconfig.rootpath.parent / "shared") / "data"
    if not path.is_dir():
        pytest.skip(f"real data is not at {path}; set FROSTLINE_SHARED to the folder above it")
    return path


def _train_arguments(files: SimpleNamespace, **changes: object) -> list[str]:
    given = {"train": files.train, "dev": files.dev, "vectors": files.vectors, "out": files.out, "epochs": 8} | changes
    return ["tagger", "train", *[str(part) for name, value in given.items() for part in (f"--{name}", value)]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    files = _write(tmp_path_factory.mktemp("toy"))
    with pytest.MonkeyPatch.context() as patch:
        files.printed = io.StringIO()
        patch.setattr("sys.stdout", files.printed)
        files.code = main(_train_arguments(files))
    files.printed = files.printed.getvalue()
    return files


def test_training_prints_plain_lines_the_plan_the_audit_and_f1_on_dev(trained: SimpleNamespace) -> None:
    assert trained.code == 0
    lines = trained.printed.splitlines()
    assert sum(line.startswith("epoch") for line in lines) == 8
    assert "\x1b" not in trained.printed
    assert "\r" not in trained.printed
    assert "embed.weight" in trained.printed
    assert "audit    0 of 84 frozen entries moved, compared bit by bit; 2 of 2 rows that learn moved" in lines
    assert lines[-1].startswith("F1 on dev ")
    assert sorted(path.name for path in trained.out.iterdir()) == [
        *(
            "about.json",
            "audit.json",
            "config.json",
            "confusion.json",
            "curves.jsonl",
            "model.safetensors",
            "plan.json",
        ),
        *("row_changes.safetensors", "scores.json", "words.json"),
    ]


def test_what_training_leaves_for_the_report_is_what_it_printed(trained: SimpleNamespace) -> None:
    run = read_run(trained.out)
    assert run.about is not None
    epoch, f1 = re.findall(r"epoch (\d+) of 8, F1 on dev ([\d.]+ %)", run.about["facts"]["kept"])[0]
    assert trained.printed.splitlines()[-1].startswith(f"F1 on dev {f1}: epoch {epoch}, saved in ")
    assert run.audit == {"frozen_compared": 84, "frozen_moved": 0, "learned_rows": 2, "learned_rows_moved": 2}
    losses = re.findall(r"loss ([\d.]+)", trained.printed)
    assert [f"{point['loss']:.4f}" for point in run.curves] == losses
    assert run.row_changes is not None
    assert sorted(run.row_changes.words[:2]) == ["<unk>", "Nowhere"]
    assert run.row_changes.learns.sum() == 2
    stands = ~run.row_changes.learns
    assert torch.equal(run.row_changes.after[stands], run.row_changes.before[stands])
    assert (run.row_changes.after[:2] != run.row_changes.before[:2]).any(dim=1).all()


def test_a_tagger_with_its_run_files_is_replaced_by_the_next(trained: SimpleNamespace, tmp_path: Path) -> None:
    files = _write(tmp_path)
    assert main(_train_arguments(files, epochs=1)) == 0
    assert main(_train_arguments(files, epochs=2)) == 0
    assert len(read_run(files.out).curves) == 2


def test_the_precision_of_a_training_can_be_chosen(tmp_path: Path) -> None:
    files = _write(tmp_path)
    assert main(_train_arguments(files, epochs=2, device="cpu")) == 0
    fine = (files.out / "model.safetensors").read_bytes()
    assert main([*_train_arguments(files, epochs=2), "--bf16"]) == 0
    coarse = (files.out / "model.safetensors").read_bytes()
    assert coarse != fine
    assert len(coarse) == len(fine)  # float32, both


def test_a_corpus_with_other_tags_is_learned_from_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _write(tmp_path)
    (tmp_path / "more.conll").write_text("Rome\tB-capital\nslept\tO\n", encoding="utf-8")
    assert main([*_train_arguments(files, epochs=2), "--auxiliary", str(tmp_path / "more.conll")]) == 0
    printed = capsys.readouterr().out
    assert f"auxiliary 1 sentences, 2 tokens in {tmp_path / 'more.conll'}" in printed.splitlines()
    config = json.loads((files.out / "config.json").read_text(encoding="ascii"))
    assert config["tags"] == ["O", "B-town"]
    assert "Rome" in json.loads((files.out / "words.json").read_text(encoding="ascii"))[: config["missing"]]
    assert main([*_train_arguments(files, epochs=1), "--auxiliary", "nowhere.conll"]) == 2
    assert "nowhere.conll: No such file" in capsys.readouterr().err


def test_a_tagger_may_read_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _write(tmp_path)
    assert main(_train_arguments(files, **{"char-filters": 7})) == 0
    assert re.search(r"^char_cnn\.weight +3 x 256 x 7\b", capsys.readouterr().out, re.MULTILINE)
    assert load_file(files.out / "model.safetensors")["char_cnn.weight"].shape == (3, 256, 7)
    assert main(["tagger", "evaluate", str(files.out), str(files.dev), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overall_f1"] > 0.9


def test_the_files_of_one_option_are_one_corpus_and_of_several_options_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _write(tmp_path)
    parts = {"rome": "Rome\tB-capital\nslept\tO\n", "oslo": "Oslo\tS-capital\n", "ada": "Ada\tB-person\n"}
    for name, text in parts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "both").write_text(parts["rome"] + "\nOslo\tB-capital\n", encoding="utf-8")
    rome, oslo, ada, both = (str(tmp_path / name) for name in ("rome", "oslo", "ada", "both"))
    bits = {}
    for name, corpora in {
        "parts": [[rome, oslo], [ada]],
        "whole": [[both], [ada]],
        "apart": [[rome], [oslo], [ada]],
        "again": [[both], [both]],
    }.items():
        given = [word for paths in corpora for word in ("--auxiliary", *paths)]
        assert main([*_train_arguments(files, epochs=1, out=tmp_path / name), *given]) == 0
        bits[name] = load_file(tmp_path / name / "model.safetensors")
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("auxiliary")]
        assert len(lines) == len(corpora)
        if name == "parts":
            assert lines[0] == f"auxiliary 2 sentences, 3 tokens, tags in BIOES in {rome} {oslo}"
            assert (
                f"auxiliary {rome} {oslo}" in json.loads((tmp_path / name / "about.json").read_text("utf-8"))["facts"]
            )
    assert all(torch.equal(bits["parts"][name], bits["whole"][name]) for name in bits["whole"])
    assert not all(torch.equal(bits["parts"][name], bits["apart"][name]) for name in bits["apart"])


def test_what_makes_f1_mean_less_than_it_seems_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _write(tmp_path)
    assert main(_train_arguments(files, epochs=1, dev=files.train)) == 0
    assert "warning  dev: the sentences of --train, so F1 says nothing" in capsys.readouterr().out
    files.dev.write_text("We\tO\nslept\tO\n", encoding="utf-8")
    assert main(_train_arguments(files, epochs=1)) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert warnings == ["warning  dev: every tag is O. Compare which column holds the tag."]
    files = _write(tmp_path)
    files.dev.write_text(files.dev.read_text(encoding="utf-8").replace("\n\n", "\n") * 10, encoding="utf-8")
    assert main(_train_arguments(files, epochs=1)) == 0
    assert "warning  dev: a sentence of 2,400 tokens. An empty line ends a sentence.\n" in capsys.readouterr().out


def test_a_run_that_was_killed_resumes_and_leaves_the_same_tagger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _write(tmp_path)
    arguments = [*_train_arguments(files), "--patience", "6"]
    assert main([*arguments, "--resume"]) == 2
    assert "training.safetensors: no such file, so nothing to resume" in capsys.readouterr().err
    assert main(arguments) == 0
    whole = (files.out / "model.safetensors").read_bytes()
    shutil.rmtree(files.out)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "epoch", killed)
        assert main(arguments) == 130
        assert capsys.readouterr().out.endswith("stopped  to continue, pass the same arguments and --resume\n")
        patch.setattr("frostline.tagger.training.checkpoint.time.monotonic", iter(range(0, 10**6, 31)).__next__)
        assert main(arguments) == 130
        assert capsys.readouterr().out.endswith("stopped  to continue, pass the same arguments and --resume\n")
    assert [path.name for path in files.out.iterdir()] == ["training.safetensors"]
    assert main(["tagger", "predict", str(files.out)]) == 2
    assert "its training has not ended. Pass --resume" in capsys.readouterr().err
    assert main([*_train_arguments(files), "--resume", "--seed", "1"]) == 2
    assert "warning" not in capsys.readouterr().out
    assert main([*_train_arguments(files), "--vectors", "missing.txt"]) == 2
    assert f"warning  {files.out}: an unfinished training run is replaced" in capsys.readouterr().out
    assert main([*arguments, "--resume"]) == 0
    assert (files.out / "model.safetensors").read_bytes() == whole
    assert not (files.out / "training.safetensors").exists()


def test_evaluating_in_json_gives_the_f1_that_training_printed(
    trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tagger", "evaluate", str(trained.out), str(trained.dev), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    overall = {f"overall_{name}" for name in ("precision", "recall", "f1", "accuracy")}
    assert found.keys() == {"town", *overall, "surface_precision", "surface_recall", "surface_f1"}
    assert found["town"].keys() == {"precision", "recall", "f1", "number"}
    assert 0.9 < found["overall_f1"] <= 1
    assert trained.printed.splitlines()[-1].startswith(f"F1 on dev {100 * found['overall_f1']:.1f} %")


def test_evaluating_prints_a_table_with_a_line_for_each_type_and_for_all(
    trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tagger", "evaluate", str(trained.out), str(trained.dev)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0].strip("-") for line in lines] == ["type", "", "town", "", "all", "surface"]


def test_predicting_prints_columns_that_can_be_read_again(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("We left Town15.\n\nWe reached Town3 .\r\n", encoding="utf-8")
    assert main(["tagger", "predict", str(trained.out), str(text)]) == 0
    out = capsys.readouterr().out
    (tmp_path / "out.conll").write_text(out, encoding="utf-8")
    assert read_conll(tmp_path / "out.conll") == [
        (("We", "left", "Town15", "."), ("O", "O", "B-town", "O")),
        (("We", "reached", "Town3", "."), ("O", "O", "B-town", "O")),
    ]


def test_predicting_reads_stdin_and_gives_one_json_object_a_line(
    trained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("We left Town15.\n\nZoë slept".encode())))
    assert main(["tagger", "predict", str(trained.out), "--json"]) == 0
    first, empty, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "text": "We left Town15.",
        "tokens": ["We", "left", "Town15", "."],
        "tags": ["O", "O", "B-town", "O"],
        "offsets": [[0, 2], [3, 7], [8, 14], [14, 15]],
        "entities": [{"type": "town", "text": "Town15", "start": 8, "end": 14, "token_start": 2, "token_end": 3}],
    }
    assert empty == {"text": "", "tokens": [], "tags": [], "offsets": [], "entities": []}
    assert last["tokens"] == ["Zoë", "slept"]


@pytest.mark.parametrize(
    ("more", "lines", "answer"),
    [
        ([], b"We left Town15\n", b"We\tO\nleft\tO\nTown15\tB-town\n\n"),
        (["--color"], b"We left\n\n", b"We left\n\n"),
        (["--tokens"], b"We O\nTown15 O\n\n", b"We O O\nTown15 O B-town\n\n"),
    ],
)
def test_who_writes_a_line_and_waits_gets_its_answer(
    more: list[str], lines: bytes, answer: bytes, trained: SimpleNamespace
) -> None:
    command = [sys.executable, "-m", "frostline", "tagger", "predict", str(trained.out), *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(3):
            for piece in (lines[:4], lines[4:]):  # a line may arrive in pieces
                process.stdin.write(piece)
                process.stdin.flush()
            assert b"".join(process.stdout.readline() for _ in answer.splitlines()) == answer
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_predicting_from_a_closed_stdin_is_refused(
    trained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["tagger", "predict", str(trained.out)]) == 2
    assert capsys.readouterr().err == "frostline: stdin is closed. Name a file, or pipe one in.\n"


def test_training_prints_words_of_any_letters_whatever_the_locale_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _write(tmp_path)
    files.train.write_text(files.train.read_text(encoding="utf-8").replace("Nowhere", "Zoë"), encoding="utf-8")
    files.train = files.train.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.conll"))
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert main(_train_arguments(files, epochs=1)) == 0
    assert "missing: Zoë".encode() in printed.getvalue()
    assert b"/\xff.conll\n" in printed.getvalue()


def test_predicting_in_colour_prints_the_text_as_it_was_around_its_entities(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("We  left Town15.\n\nWe reached  Town3 .\n", encoding="utf-8")
    assert main(["tagger", "predict", str(trained.out), str(text), "--color"]) == 0
    first, second = (f"\x1b[1;36m{town}\x1b[0;36m/town\x1b[0m" for town in ("Town15", "Town3"))
    assert capsys.readouterr().out == f"We  left {first}.\n\nWe reached  {second} .\n"


def test_predicting_over_labelled_columns_gives_what_score_reads(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tagger", "predict", str(trained.out), str(trained.dev), "--tokens"]) == 0
    (tmp_path / "output.conll").write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["tagger", "score", str(tmp_path / "output.conll"), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert main(["tagger", "evaluate", str(trained.out), str(trained.dev), "--json"]) == 0
    assert scored.items() <= json.loads(capsys.readouterr().out).items()
    assert scored["town"]["number"] == 60


def test_tokens_come_from_the_column_that_is_named_and_tags_in_the_scheme_that_is_asked_for(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plain.conll"
    path.write_text("# a\n1 We\n2 left\n3 Town15 \n\n1 Town3\n", encoding="utf-8")
    layout = ["--token-column", "2", "--comments", "#"]
    assert main(["tagger", "predict", str(trained.out), str(path), "--tokens", "--scheme", "BIOES", *layout]) == 0
    assert capsys.readouterr().out == "1 We O\n2 left O\n3 Town15 S-town\n\n1 Town3 S-town\n\n"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 0}, "argument --epochs: '0' is not a whole number of at least 1"),
        ({"epochs": "two"}, "argument --epochs: 'two' is not a whole number of at least 1"),
        ({"seed": -1}, "argument --seed: '-1' is not a whole number of at least 0"),
        ({"char-filters": 10**9}, "--char-filters: 1000000000 is out of range. Pass 1024 or less."),
        ({"hidden": 10**9}, "--hidden: 1000000000 is out of range. Pass 16384 or less."),
        ({"batch-size": 10**9}, "--batch-size: 1000000000 is out of range. Pass 1048576 or less."),
        (
            {"seed": 2**63},
            "--seed: '9223372036854775808' is too large. Pass a whole number from 0 to 9223372036854775807",
        ),
        ({"char-filters": -1}, "--char-filters: -1 is out of range. Pass 0 or more."),
        ({"train": "missing.conll"}, "missing.conll: No such file or directory. Check the path."),
        ({"vectors": "missing.txt"}, "missing.txt"),
        ({"dev": "EMPTY"}, "empty.conll: no labelled token in it"),
        ({"train": "BAD"}, "bad.conll:2: no tag beside 'York'"),
        ({"train": "FOLDER"}, "notes: Is a directory"),
        ({"vectors": "EMPTY"}, "empty.conll"),
        ({"out": "FOLDER"}, "notes: a folder that holds something other than a tagger"),
        ({"device": "gpu"}, "device: 'gpu' cannot be used here"),
        ({"out": "BAD"}, "bad.conll: a file, but a folder is to be written"),
    ],
)
def test_wrong_input_to_train_gets_one_line_and_exit_code_2_and_writes_nothing(
    changes: dict[str, object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _write(tmp_path)
    paths = {"EMPTY": tmp_path / "empty.conll", "BAD": tmp_path / "bad.conll", "FOLDER": tmp_path / "notes"}
    paths["EMPTY"].touch()
    paths["BAD"].write_text("New\tO\nYork\n", encoding="utf-8")
    paths["FOLDER"].mkdir()
    (paths["FOLDER"] / "mine.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(_train_arguments(files, **{name: paths.get(str(value), value) for name, value in changes.items()})) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "MODEL", "missing.conll"], "missing.conll: No such file or directory. Check the path."),
        (["evaluate", "nowhere", "missing.conll"], "nowhere: no such folder"),
        (["evaluate", "MODEL", "DEV", "--run-folder", "LATIN"], "latin.txt: cannot be written to: File exists"),
        (["predict", "MODEL", "missing.txt"], "missing.txt: No such file or directory. Check the path."),
        (["predict", "MODEL", "LATIN"], "latin.txt:2: byte 0xe9 is not UTF-8"),
        (["predict", "nowhere"], "nowhere: no such folder"),
        (["predict", "MODEL", "--device", "gpu"], "device: 'gpu' cannot be used here"),
        (["evaluate", "MODEL", "missing.conll", "--device", "meta"], "device: 'meta' cannot be used here"),
        (["predict", "MODEL", "--token-column", "2"], "--token-column, --separator and --comments are for --tokens"),
        (["predict", "MODEL", "LATIN", "--json", "--color"], "argument --color: not allowed with argument --json"),
        (["predict", "MODEL", "LATIN", "--tokens", "--token-column", "3"], "latin.txt:1: 1 columns in 'tea', 3 needed"),
    ],
)
def test_wrong_input_to_a_trained_tagger_gets_one_line_and_exit_code_2(
    arguments: list[str], says: str, trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"tea\ncaf\xe9\n")
    paths = {"MODEL": str(trained.out), "LATIN": str(tmp_path / "latin.txt"), "DEV": str(trained.dev)}
    assert main(["tagger", *[paths.get(argument, argument) for argument in arguments]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_real_tweets_over_real_vectors_train_and_the_audit_finds_nothing_moved(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = {"train": 600, "dev": 200}
    for name, sentences in cut.items():
        text = (real_data / "wnut17" / f"{name}.conll").read_text(encoding="utf-8").replace("\n\t\n", "\n\n")
        (tmp_path / f"{name}.conll").write_text("\n\n".join(text.split("\n\n")[:sentences]) + "\n", encoding="utf-8")
    vectors = tmp_path / "some.txt"
    with gzip.open(real_data / "vectors" / "glove.6B.50d.txt.gz", "rt", encoding="utf-8", newline="\n") as file:
        vectors.write_text("".join(islice(file, 20_000)), encoding="utf-8")
    files = SimpleNamespace(
        train=tmp_path / "train.conll", dev=tmp_path / "dev.conll", vectors=vectors, out=tmp_path / "model"
    )
    assert [len(read_conll(path)) for path in (files.train, files.dev)] == [600, 200]
    assert main(_train_arguments(files, epochs=3)) == 0
    printed = capsys.readouterr().out
    audit = next(line for line in printed.splitlines() if line.startswith("audit"))
    assert audit.startswith("audit    0 of 1,000,050 frozen entries moved, compared bit by bit; ")
    moved, learned = re.findall(r"([\d,]+) of ([\d,]+) rows that learn moved", audit)[0]
    assert moved == learned != "0"
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("name", "sentences", "tokens"), [("wnut17/train", 3394, 62730), ("wnut17/dev", 1009, 15733)])
def test_every_token_of_the_real_files_is_read(real_data: Path, name: str, sentences: int, tokens: int) -> None:
    found = read_conll(real_data / f"{name}.conll")
    assert (len(found), sum(len(sentence.tokens) for sentence in found)) == (sentences, tokens)


@pytest.mark.parametrize("name", list("abefgh"))
def test_every_line_of_the_dirty_real_files_is_read(real_data: Path, name: str) -> None:
    path = real_data / "btc" / f"{name}.conll"
    blocks = [block for block in path.read_bytes().decode().split("\n\n") if block.strip("\n")]
    assert [len(tokens) for tokens, _ in read_conll(path)] == [block.strip("\n").count("\n") + 1 for block in blocks]


def test_empty_tokens_and_tokens_with_blanks_of_the_real_files_are_kept(real_data: Path) -> None:
    tokens = {token for sentence in read_conll(real_data / "btc" / "h.conll") for token in sentence.tokens}
    assert {"", "ke s", "AD t"} <= tokens


def test_columns_schemes_and_separators_can_be_chosen_and_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _write(tmp_path)
    rewritten = {"\tO\n": "|O|x\n", "\tB-town\n": "|S-town|x\n"}
    for path in (files.train, files.dev):
        text = path.read_text(encoding="utf-8")
        for old, new in rewritten.items():
            text = text.replace(old, new)
        path.write_text("## of towns\n" + text, encoding="utf-8")
    layout = ["--tag-column", "-2", "--separator", "|", "--comments", "##"]
    assert main([*_train_arguments(files, epochs=8), *layout]) == 0
    printed = capsys.readouterr().out
    assert f"train    60 sentences, 240 tokens, tags in BIOES in {files.train}" in printed
    assert main(["tagger", "evaluate", str(files.out), str(files.dev), *layout, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["town"]["number"] == 60
    assert main(["tagger", "evaluate", str(files.out), str(files.dev), "--tag-column", "0"]) == 2
    assert "argument --tag-column: '0' is not a column. The first is 1, the last -1." in capsys.readouterr().err


def test_training_prints_how_many_tokens_have_a_vector_and_warns_where_few_do(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = trained.dev.read_text(encoding="utf-8")
    lowered = 60 + dev.count("Town")  # "We" and the towns begin upper case; only Nowhere has no vector
    words = len(set(re.findall(r"^(\S+)\t", dev, re.MULTILINE)))
    assert (
        f"dev      {words - 1} of {words} words have a vector ({1 - dev.count('Nowhere') / 240:.1%} of the tokens, "
        f"{lowered / 240:.1%} only in lower case); missing: Nowhere\n" in trained.printed
    )
    assert "warning" not in trained.printed
    files = _write(tmp_path)
    dev += "Oslo\tB-harbour\n"
    files.dev.write_text(dev.replace("We", "Nous").replace("left", "avons").replace("reached", "vu"), encoding="utf-8")
    assert main(_train_arguments(files, epochs=1)) == 0
    printed = capsys.readouterr().out
    assert "warning  dev: few tokens have a vector. Compare how both write words" in printed
    assert "warning  dev: 1 of type 'harbour', which --train lacks; they count, and cannot be found\n" in printed


def test_evaluating_prints_the_errors_writes_the_confusion_and_names_types_it_does_not_know(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = tmp_path / "gold.conll"
    gold.write_text(
        "We\tO\nleft\tO\nTown15\tB-town\n.\tO\n\nWe\tB-band\nleft\tI-band\nTown3\tO\n.\tO\n", encoding="utf-8"
    )
    run_folder = tmp_path / "run"
    arguments = ["tagger", "evaluate", str(trained.out), str(gold), "--errors", "5", "--run-folder", str(run_folder)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == "warning: 1 of type 'band', which this tagger does not know; all are missed\n"
    assert "surface F1 50.0% (precision 50.0%, recall 50.0%): 2 different names, 2 found" in printed.out
    assert printed.out.endswith(
        "\n\n2 errors: 1 missed, 1 invented\n"
        "\nmost frequent\n     1  missed    band: 'We left'\n     1  invented  town: 'Town3'\n"
        "\nlongest (tokens)\n     2  missed    band: 'We left'\n     1  invented  town: 'Town3'\n"
    )
    run = read_run(run_folder)
    counts = [[0, 0, 1], [0, 1, 0], [0, 1, 0]]  # band missed, one town right, one invented
    titles = {"rows": "gold in gold.conll", "columns": "predicted"}
    assert run.confusion == {"types": ["band", "town"], "counts": counts} | titles
    assert run.about is not None
    assert run.about["title"] == "A tagger evaluated on gold.conll"
    assert main(["tagger", "evaluate", str(trained.out), str(trained.dev), "--run-folder", str(run_folder)]) == 0
    run = read_run(run_folder)
    assert run.about is not None
    assert run.about["title"] == "A tagger evaluated on dev.conll"


def test_evaluating_into_the_folder_of_a_tagger_keeps_what_its_training_wrote(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    out = shutil.copytree(trained.out, tmp_path / "model")
    before = read_run(out)
    assert main(["tagger", "evaluate", str(out), str(trained.dev), "--run-folder", str(out)]) == 0
    after = read_run(out)
    assert after.confusion is not None
    assert (after.about, after.plan, after.audit) == (before.about, before.plan, before.audit)
    tagger.Tagger.load(out).save(out)  # is still recognised as a tagger's folder, which may be replaced


def test_a_file_is_tagged_in_batches_and_standard_input_line_by_line(
    trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: list[int] = []
    predict = tagger.Tagger.predict

    def counted(self: tagger.Tagger, sentences: Any) -> list[list[str]]:
        sizes.append(len(sentences))
        return predict(self, sentences)

    monkeypatch.setattr(tagger.Tagger, "predict", counted)
    text = "".join(f"We left Town{index}\n" for index in range(1100)).encode()
    (tmp_path / "text.txt").write_bytes(text)
    assert main(["tagger", "predict", str(trained.out), str(tmp_path / "text.txt")]) == 0
    assert sizes == [512, 512, 76]
    of_file = capsys.readouterr().out
    assert of_file.count("\n\n") == 1100
    sizes.clear()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert main(["tagger", "predict", str(trained.out)]) == 0
    assert sizes == [1] * 1100
    assert capsys.readouterr().out == of_file
