"""The benchmarks run, and what they compare agrees before it is timed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import frostline as fl

Run = Callable[..., str]
WAYS_OF_ENTRIES = ["frozen", "frostline", "masked", "shira", "full"]


@pytest.fixture
def run(pytestconfig: pytest.Config) -> Run:
    """Run Python in the folder of the benchmarks and return what it prints."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=pytestconfig.rootpath / "benchmarks",
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_partial_step_benchmark_compares_every_way_with_a_frozen_table(run: Run) -> None:
    pytest.importorskip("peft")
    printed = run("partial_step.py", "--quick")
    assert printed.startswith("All agree.")
    for way in ("frozen", "partial", "sparse", "hook", "mask+stop", "two tables", "restore", "peft"):
        moved = "100%" if way in ("hook", "mask+stop") else "0%"
        lines = re.findall(rf"^\| {re.escape(way)} \| .*$", printed, re.MULTILINE)
        assert len(lines) == 2, f"{way}: one line for SGD, one for Adam"
        assert all(line.endswith(f"| {moved} |") for line in lines)


def test_the_partial_step_benchmark_notices_a_way_that_disagrees(run: Run) -> None:
    wrong = "import partial_step as b, ways; ways.WAYS['restore'] = ways.frozen; b.check(['restore'])"
    with pytest.raises(AssertionError, match="not close"):
        run("-c", wrong)


def test_the_compiled_step_benchmark_compares_partial_tables_with_a_frozen_one(run: Run) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here, which torch.compile needs")
    printed = run("compiled_step.py", "--quick")
    assert printed.startswith("All agree.")
    for way in ("frozen", "few", "1 %"):
        assert len(re.findall(rf"^\| {way} \| .*$", printed, re.MULTILINE)) == 1


def test_the_compiled_step_benchmark_notices_rows_that_do_not_move(run: Run) -> None:
    wrong = "import compiled_step as b; b.Way.step = lambda *_: 0.0; b.check()"
    with pytest.raises(AssertionError, match="rows that learn did not move"):
        run("-c", wrong)


def test_the_row_optimizer_benchmark_compares_every_family_with_its_floor(run: Run) -> None:
    if fl.optim.backend().name != "c++":
        pytest.skip("no C++ compiler, so no kernel to compare")
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


def test_the_row_optimizer_benchmark_notices_a_way_that_disagrees(run: Run) -> None:
    faster = "lambda p: torch.optim.SGD(p, lr=0.5)"
    wrong = f"import row_optimizers as b, torch; b.FAMILIES['SGD'].theirs['faster'] = ({faster}, False); b.check(False)"
    with pytest.raises(AssertionError, match="faster and RowSGD"):
        run("-c", wrong)


def test_the_language_model_benchmark_compares_every_way_with_a_frozen_model(run: Run) -> None:
    for needed in ("transformers", "peft"):
        pytest.importorskip(needed)
    printed = run("language_model.py", "--quick")
    assert printed.count("The losses agree.") == 2
    for way in ("frozen", "frostline", "peft", "hook"):
        lines = re.findall(rf"^\| {way} \| .*$", printed, re.MULTILINE)
        assert len(lines) == 2, f"{way}: one line for each count of ids"
        assert all(line.endswith("| 100% |" if way == "hook" else "| 0% |") for line in lines)


def test_the_language_model_benchmark_notices_a_way_that_learns_something_else(run: Run) -> None:
    pytest.importorskip("transformers")
    wrong = (
        "import language_model as b; b.WAYS['frostline'] = lambda model, rows: b.frostline(model, rows[:1]); "
        "b.take_turns(['frozen', 'frostline', 'hook'], 500, 16, 3)"
    )
    with pytest.raises(AssertionError, match="frostline disagrees"):
        run("-c", wrong)


def test_the_entries_benchmark_compares_every_way_with_a_frozen_model(run: Run) -> None:
    for needed in ("transformers", "peft"):
        pytest.importorskip(needed)
    printed = run("entries.py", "--quick", "--cases", "64 tokens", "RowAdamW", "w[ids]")
    cases = printed.split("\n### ")[1:]
    assert len(cases) == 5, "a Llama, experts in two ways, lookups, a use of a table"
    for case in cases:
        assert "All agree." in case
        ways = re.findall(r"^\| (\w+) \| [\d.]+, [\d.]+ \|", case, re.MULTILINE)
        assert ways == [way for way in WAYS_OF_ENTRIES if way != "shira" or "Llama" in case]


def test_the_entries_benchmark_notices_a_way_that_learns_something_else(run: Run) -> None:
    wrong = (
        "import entries as b; b.WAYS['frostline'] = b.WAYS['full']; "
        "b.main(['--quick', '--ways', 'frostline', '--cases', 'convolutions'])"
    )
    with pytest.raises(AssertionError, match=r"frozen entries of .* moved"):
        run("-c", wrong)


def test_the_benchmark_of_chosen_entries_tries_every_choice(run: Run) -> None:
    few = "--first-steps 2 --steps 1 --seeds 2 --rates 0.01 --windows 8 --batches 1"
    printed = run("choose_entries.py", *few.split())
    for way in ("largest", "gradient", "random", "everything"):
        (line,) = re.findall(rf"^\| {way} \| ([\d,]+) \| .* \(\d\.\d+, \d\.\d+\) ", printed, re.MULTILINE)
        assert line == ("425,984" if way == "everything" else "4,255")


def test_the_explain_benchmark_names_the_cut_before_it_is_timed(run: Run) -> None:
    printed = run("explain.py", "--quick")
    lines = re.findall(r"^\| [\d,]+ \|.*\| [\d.]+ \|$", printed, re.MULTILINE)
    assert len(lines) == 2, "one line for each size"


def test_the_tagger_speed_benchmark_measures_both_sizes(run: Run) -> None:
    printed = run("tagger_speed.py", "--quick")
    for way in ("frostline", "frostline, 256"):
        (line,) = re.findall(rf"^\| {way} \| (.*) \|$", printed, re.MULTILINE)
        values = [cell for cell in line.replace(",", "").split(" | ") if cell.strip(" |")]
        assert len(values) == 4
        assert all(int(value) > 0 for value in values)
    assert "flair" not in printed


def test_the_tagger_regimes_benchmark_trains_every_regime_on_every_part(run: Run) -> None:
    printed = run("tagger_regimes.py", "--quick", "--parts", "1", "2", "--keep", "80")
    for sentences in (60, 30):
        for regime in ("none", "missing", "all"):
            lines = re.findall(rf"^\| {sentences} \| 80 \| 2 \| {regime} \| [\d.]+ \([\d.]+, [\d.]+\) ", printed, re.M)
            assert len(lines) == 1


def test_the_tagger_regimes_benchmark_logs_its_runs_and_the_picture_shows_them(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log, picture = tmp_path / "runs.jsonl", tmp_path / "picture.png"
    made = ["from tagger_speed import made_up; from pathlib import Path", f"print(*made_up(Path({str(tmp_path)!r})))"]
    train, dev, table = run("-c", "; ".join(made)).split()
    command = ["tagger_regimes.py", train, dev, table, "--far", train, "--epochs", "1", "--log", str(log)]
    first = run(*command, "--seeds", "1", "--parts", "1", "2")
    runs = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(r["part"], r["regime"]) for r in runs] == [(p, r) for p in (1, 2) for r in ("none", "missing", "all")]
    assert all(0 <= r["f1"] <= 100 and 0 <= r["far"] <= 100 and r["ms"] > 0 and r["MB"] > 0 for r in runs)
    assert run(*command, "--seeds", "1", "--parts", "1", "2") == first  # nothing is run again, or its time would differ
    assert len(log.read_text().splitlines()) == 6
    run("draw_tagger_regimes.py", str(log), str(picture), "--epochs", "1")
    assert picture.read_bytes().startswith(b"\x89PNG")
    command[2] = train  # with other sentences to score, it is another run
    run(*command, "--seeds", "1", "--regimes", "none")
    assert len(log.read_text().splitlines()) == 7


def test_the_tagger_regimes_benchmark_groups_entities_by_their_words(run: Run) -> None:
    program = (
        "import tagger_regimes as b; from frostline.tagger import Sentence, Vocabulary; "
        "words = Vocabulary(['Blorp', 'ada', 'eve'], missing=1); trained = {2, 3}; "
        "gold = [Sentence(['Ada', 'Blorp', 'Zork', 'Eve'], ['B-a'] * 4), "
        "Sentence(['Blorp', 'Zork', 'O', 'Ada', 'Blorp'], ['B-a', 'I-a', 'O', 'B-a', 'I-a'])]; "
        "print(b.recall_by_kind(gold, [['B-a', 'B-b', 'O', 'B-a'], ['B-a', 'I-a', 'O', 'O', 'O']], words, trained))"
    )
    kinds = {"seen": (1, 1), "vectors": (1, 1), "learned": (0, 2), "unknown": (1, 2)}
    assert run("-c", program) == f"{kinds}\n"


def test_the_word2vec_benchmark_compares_the_whole_way_from_text_to_vectors(run: Run) -> None:
    pytest.importorskip("gensim")
    printed = run("word2vec.py", "--quick")
    for way in ("frostline", "gensim"):
        assert len(re.findall(rf"^{way} +\d", printed, re.MULTILINE)) == 2, "one line for each number of threads"
    assert "gensim / frostline, 2 threads: " in printed


def test_the_benchmark_of_changes_agrees_before_it_is_timed(run: Run) -> None:
    if fl.optim.backend().name != "c++":
        pytest.skip("no C++ compiler, so no kernel to compare")
    printed = run("changes.py", "--entries", "400000", "--rounds", "1")
    for way in ("copy", "c++", "plain", "torch", "digest", "sha256", "diff", "diff all", "save", "apply"):
        assert len(re.findall(rf"^{re.escape(way)} +[0-9.]+ ", printed, re.MULTILINE)) == 1
    assert "4,000 changed" in printed


def test_the_benchmark_of_changes_notices_a_way_that_misses_an_entry(run: Run) -> None:
    sizes = "sys.argv[1:] = ['--entries', '400000']"
    wrong = f"import sys, changes as b; {sizes}; find = b.find; b.find = lambda *a: find(*a)[1:]; b.main()"
    with pytest.raises(AssertionError, match="AssertionError: c"):
        run("-c", wrong)
