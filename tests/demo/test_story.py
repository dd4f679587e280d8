"""The whole demo at a small scale: what it prints and writes."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import frostline as fl
from frostline.cli import demo, main
from frostline.demo.story import Scale, tell
from frostline.record import read_run

for extra in ("matplotlib", "plotly", "rich"):
    pytest.importorskip(extra, reason=f"the demo needs {extra}, of the extra demo")

SMALL = Scale(dimension=16, vector_epochs=2, epochs=8, seeds=(0, 1), docstrings=1500, sentences=120)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    out = tmp_path_factory.mktemp("story") / "new" / "folder"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        results = tell(out, SMALL)
    return results, out, printed.getvalue()


def test_no_frozen_value_moves_and_the_missing_words_do(demo_run: tuple[dict[str, Any], Path, str]) -> None:
    audit = demo_run[0]["audit"]
    assert audit["frozen_moved"] == 0
    assert audit["frozen_compared"] == SMALL.dimension * (demo_run[0]["vectors"]["words"] + 1)  # with the padding row
    assert audit["learned_rows_moved"] == audit["learned_rows"] > 100


def test_known_words_move_where_all_words_learn(demo_run: tuple[dict[str, Any], Path, str]) -> None:
    audit = demo_run[0]["audit"]
    assert audit["known_moved_when_all_learn"] > 0.9 * audit["known_compared_when_all_learn"] > 0


def test_the_three_regimes_have_a_score_for_each_seed(demo_run: tuple[dict[str, Any], Path, str]) -> None:
    regimes = demo_run[0]["regimes"]
    assert sorted(regimes) == ["all", "missing", "none"]
    assert all(len(regime["test_f1"]) == 2 and max(regime["test_f1"]) <= 1 for regime in regimes.values())
    assert max(max(regime["dev_f1"]) for regime in regimes.values()) > 0


def test_the_plans_differ_in_what_learns_of_the_table(demo_run: tuple[dict[str, Any], Path, str]) -> None:
    learned = {name: regime["plan"]["learned"] for name, regime in demo_run[0]["regimes"].items()}
    assert learned["none"] < learned["missing"] < learned["all"]


def test_the_output_tells_the_story_in_order_and_in_plain_lines(demo_run: tuple[dict[str, Any], Path, str]) -> None:
    text = demo_run[2]
    landmarks = [
        "1. Read",
        "2. Train word vectors",
        "3. Train the same tagger",
        "embed.weight",
        "Entity F1",
        "4. Audit",
    ]
    landmarks += ["frozen values moved", "moved furthest", "travel.png"]
    positions = [text.index(landmark) for landmark in landmarks]
    assert positions == sorted(positions)
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.count(" epochs, loss ") == 6  # one line for each run
    assert max(map(len, text.splitlines())) < 120


def test_pictures_results_and_the_run_are_in_the_folder_and_no_more(
    demo_run: tuple[dict[str, Any], Path, str],
) -> None:
    results, out, _ = demo_run
    assert sorted(path.name for path in out.iterdir()) == [
        *("about.json", "audit.json", "curves.jsonl", "curves.png", "plan.json", "report.html", "results.json"),
        *("row_changes.safetensors", "travel.png"),
    ]
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "travel.png"))


def test_the_run_folder_holds_the_curves_of_all_three_regimes_and_the_words_that_moved(
    demo_run: tuple[dict[str, Any], Path, str],
) -> None:
    results, out, text = demo_run
    run = read_run(out)
    assert {point["run"] for point in run.curves} == {"missing words learn", "all words frozen", "all words learn"}
    assert len(run.curves) == 3 * SMALL.epochs
    assert run.row_changes is not None
    furthest = [found["word"] for found in results["moved_furthest"]]
    assert [word for word in run.row_changes.words if word != "<unk>"][: len(furthest)] == furthest
    assert str(out / "report.html") in text


def test_without_plotly_the_demo_says_what_to_install_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    tell(tmp_path, Scale(dimension=8, vector_epochs=1, epochs=1, seeds=(0,), docstrings=800, sentences=40))
    said = " ".join(capsys.readouterr().out.split())
    assert "No report.html: the page's charts need plotly. Install it: pip install 'frostline[report]'" in said
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "results.json").exists()


def test_without_rich_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(fl.MissingExtraError, match=r"the demo needs rich.*pip install 'frostline\[demo\]'"):
        tell(tmp_path, SMALL)


@pytest.mark.parametrize(("moved", "code"), [(0, 0), (3, 1)])
def test_the_command_ends_with_1_if_a_frozen_value_moved(
    moved: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def pretend(out: Path) -> dict[str, Any]:
        seen.append(out)
        return {"audit": {"frozen_moved": moved}}

    monkeypatch.setattr("frostline.demo.story.tell", pretend)
    assert main(["demo", "--out", str(tmp_path)]) == code
    assert seen == [tmp_path]


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path / "file") in error


def test_help_needs_no_torch_and_shows_two_examples() -> None:
    code = "import sys; from frostline.cli import main; main(['demo', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("  frostline demo") == 2
    assert demo.HELP in done.stdout
