"""The benchmarks still run, and their ways still agree before they are timed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import frostline as fl

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(*arguments: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=BENCHMARKS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_partial_step_benchmark_compares_every_way_with_a_frozen_table() -> None:
    pytest.importorskip("peft")
    printed = run("partial_step.py", "--quick")
    assert printed.startswith("All agree.")
    for way in ("frozen", "partial", "sparse", "hook", "mask+stop", "two tables", "restore", "peft"):
        moved = "100%" if way in ("hook", "mask+stop") else "0%"
        lines = re.findall(rf"^\| {re.escape(way)} \| .*$", printed, re.MULTILINE)
        assert len(lines) == 2, f"{way}: one line for SGD, one for Adam"
        assert all(line.endswith(f"| {moved} |") for line in lines)


def test_the_partial_step_benchmark_notices_a_way_that_disagrees() -> None:
    wrong = "import partial_step as b, ways; ways.WAYS['restore'] = ways.frozen; b.check(['restore'])"
    with pytest.raises(AssertionError, match="not close"):
        run("-c", wrong)


def test_the_compiled_step_benchmark_compares_partial_tables_with_a_frozen_one() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here, which torch.compile needs")
    printed = run("compiled_step.py", "--quick")
    assert printed.startswith("All agree.")
    for way in ("frozen", "few", "1 %"):
        assert len(re.findall(rf"^\| {way} \| .*$", printed, re.MULTILINE)) == 1


def test_the_compiled_step_benchmark_notices_rows_that_stand_still() -> None:
    wrong = "import compiled_step as b; b.Way.step = lambda *_: 0.0; b.check()"
    with pytest.raises(AssertionError, match="rows that learn stood still"):
        run("-c", wrong)


def test_the_row_optimizer_benchmark_compares_every_family_with_its_floor() -> None:
    if fl.optim.backend().name != "c++":
        pytest.skip("no C++ compiler here, so there is no kernel to compare")
    printed = run("row_optimizers.py", "--quick")
    assert "All agree." in printed
    for way, tables in {
        "RowAdamW (C++)": 2,
        "RowAdamW (plain torch)": 2,
        "SparseAdam": 2,
        "AdamW, fused, dense": 2,
        "RowAdagrad (C++)": 4,
        "torch's Adagrad": 2,
        "RowSGD (C++)": 2,
        "torch's SGD": 2,
    }.items():
        lines = re.findall(rf"^\| {re.escape(way)} \| .*$", printed, re.MULTILINE)
        assert len(lines) == tables, f"{way}: for uniform ids and for Zipf's"
    assert ("FBGEMM is left out: " in printed) != ("| FBGEMM |" in printed)


def test_the_row_optimizer_benchmark_notices_a_way_that_disagrees() -> None:
    faster = "lambda p: torch.optim.SGD(p, lr=0.5)"
    wrong = f"import row_optimizers as b, torch; b.FAMILIES['SGD'].theirs['faster'] = ({faster}, False); b.check(False)"
    with pytest.raises(AssertionError, match="faster and RowSGD"):
        run("-c", wrong)


def test_the_language_model_benchmark_compares_every_way_with_a_frozen_model() -> None:
    for needed in ("transformers", "peft"):
        pytest.importorskip(needed)
    printed = run("language_model.py", "--quick")
    assert printed.count("The losses agree.") == 2
    for way in ("frozen", "frostline", "peft", "hook"):
        lines = re.findall(rf"^\| {way} \| .*$", printed, re.MULTILINE)
        assert len(lines) == 2, f"{way}: one line for each number of ids"
        assert all(line.endswith("| 100% |" if way == "hook" else "| 0% |") for line in lines)


def test_the_language_model_benchmark_notices_a_way_that_learns_something_else() -> None:
    pytest.importorskip("transformers")
    wrong = (
        "import language_model as b; b.WAYS['frostline'] = lambda model, rows: b.frostline(model, rows[:1]); "
        "b.take_turns(['frozen', 'frostline', 'hook'], 500, 16, 3)"
    )
    with pytest.raises(AssertionError, match="frostline disagrees"):
        run("-c", wrong)


def test_the_explain_benchmark_names_the_cut_before_it_is_timed() -> None:
    printed = run("explain.py", "--quick")
    lines = re.findall(r"^\| [\d,]+ \|.*\| [\d.]+ \|$", printed, re.MULTILINE)
    assert len(lines) == 2, "one line for each size"


def test_the_tagger_speed_benchmark_measures_both_sizes() -> None:
    printed = run("tagger_speed.py", "--quick")
    for way in ("frostline", "frostline, 256"):
        (line,) = re.findall(rf"^\| {way} \| (.*) \|$", printed, re.MULTILINE)
        numbers = [cell for cell in line.replace(",", "").split(" | ") if cell.strip(" |")]
        assert len(numbers) == 4
        assert all(int(number) > 0 for number in numbers)
    assert "flair" not in printed


def test_the_tagger_regimes_benchmark_trains_every_regime_on_every_part() -> None:
    printed = run("tagger_regimes.py", "--quick", "--parts", "1", "2", "--keep", "80")
    for sentences in (60, 30):
        for regime in ("none", "missing", "all"):
            lines = re.findall(rf"^\| {sentences} \| 80 \| 2 \| {regime} \| [\d.]+ \([\d.]+, [\d.]+\) ", printed, re.M)
            assert len(lines) == 1


def test_the_tagger_regimes_benchmark_keeps_what_it_measured_and_the_picture_shows_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log, picture = tmp_path / "runs.jsonl", tmp_path / "picture.png"
    made = ["from tagger_speed import made_up; from pathlib import Path", f"print(*made_up(Path({str(tmp_path)!r})))"]
    train, dev, table = run("-c", "; ".join(made)).split()
    command = ["tagger_regimes.py", train, dev, table, "--far", train, "--epochs", "1", "--log", str(log)]
    first = run(*command, "--seeds", "1", "--parts", "1", "2")
    kept = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(r["part"], r["regime"]) for r in kept] == [(p, r) for p in (1, 2) for r in ("none", "missing", "all")]
    assert all(0 <= r["f1"] <= 100 and 0 <= r["far"] <= 100 and r["ms"] > 0 and r["MB"] > 0 for r in kept)
    assert run(*command, "--seeds", "1", "--parts", "1", "2") == first  # nothing is run again, or its time would differ
    assert len(log.read_text().splitlines()) == 6
    run("draw_tagger_regimes.py", str(log), str(picture), "--epochs", "1")
    assert picture.read_bytes().startswith(b"\x89PNG")
    command[2] = train  # judged by other sentences it is another run
    run(*command, "--seeds", "1", "--regimes", "none")
    assert len(log.read_text().splitlines()) == 7


def test_the_tagger_regimes_benchmark_tells_entities_by_their_words() -> None:
    told = (
        "import tagger_regimes as b; from frostline.tagger import Sentence, Vocabulary; "
        "words = Vocabulary(['Blorp', 'ada', 'eve'], missing=1); trained = {2, 3}; "
        "gold = [Sentence(['Ada', 'Blorp', 'Zork', 'Eve'], ['B-a'] * 4), "
        "Sentence(['Blorp', 'Zork', 'O', 'Ada', 'Blorp'], ['B-a', 'I-a', 'O', 'B-a', 'I-a'])]; "
        "print(b.recall_by_kind(gold, [['B-a', 'B-b', 'O', 'B-a'], ['B-a', 'I-a', 'O', 'O', 'O']], words, trained))"
    )
    kinds = {"seen": (1, 1), "vectors": (1, 1), "learned": (0, 2), "unknown": (1, 2)}
    assert run("-c", told) == f"{kinds}\n"
