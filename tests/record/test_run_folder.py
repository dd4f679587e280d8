"""The files of a run folder are small and read back unchanged; a damaged file is named."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

import frostline as fl
from frostline.record import RowChanges, Run, describe_run, read_run


def row_changes():
    before = torch.zeros(6, 2)
    after = torch.tensor([[0, 0], [1, 0], [0, 0], [0, 3], [0, 2], [0, 0]], dtype=torch.float32)
    return RowChanges.from_tables(
        [f"w{row}" for row in range(6)], before, after, torch.tensor([1, 3, 4]), frozen=[5, 0]
    )


def test_the_rows_that_moved_furthest_come_first_then_frozen_rows():
    changes = row_changes()
    assert changes.words == ["w3", "w4", "w1", "w5", "w0"]
    assert changes.learns.tolist() == [True, True, True, False, False]
    assert changes.after.tolist() == [[0, 3], [0, 2], [1, 0], [0, 0], [0, 0]]
    assert changes.distances.tolist() == [1, 3, 2]


def test_of_a_large_table_a_thousand_learned_rows_are_kept_and_all_distances():
    before, after = torch.zeros(5000, 2), torch.arange(10_000.0).reshape(5000, 2)
    changes = RowChanges.from_tables(
        [str(row) for row in range(5000)], before, after, torch.arange(4000), range(4000, 5000)
    )
    assert (len(changes.words), len(changes.distances)) == (1300, 4000)
    assert changes.words[:2] == ["3999", "3998"]
    assert changes.words[999:1001] == ["3000", "4000"]


def test_what_is_written_comes_back(tmp_path):
    layer = torch.nn.Embedding(6, 2)
    plan = fl.train_only(layer, {"weight": fl.rows([1])})
    points = [{"run": "a", "epoch": 1, "loss": 0.5}, {"step": 7, "F1 on dev": 0.25}]
    audit = {"frozen_compared": 10, "frozen_moved": 0, "learned_rows": 1, "learned_rows_moved": 1}
    confusion = {"types": ["PER"], "rows": "gold", "columns": "predicted", "counts": [[3, 1], [2, 0]]}
    facts = {"file": "caf\udce9.txt", "words": "Zoë"}
    describe_run(
        tmp_path / "new", title="One row", facts=facts, plan=plan, audit=audit, confusion=confusion, curves=points,
        row_changes=row_changes(),
    )  # fmt: skip
    run = read_run(tmp_path / "new")
    assert run.about == {"title": "One row", "facts": facts}
    assert run.plan == plan.to_dict()
    assert (run.audit, run.confusion, run.explanation, list(run.curves)) == (audit, confusion, None, points)
    assert run.row_changes.words == row_changes().words
    for name in ("learns", "before", "after", "distances"):
        assert torch.equal(getattr(run.row_changes, name), getattr(row_changes(), name))


def test_what_is_not_given_stays(tmp_path):
    layer = torch.nn.Embedding(6, 2)
    describe_run(tmp_path, plan=fl.train_only(layer, {"weight": fl.rows([1])}))
    describe_run(tmp_path, title="Later")
    assert read_run(tmp_path).plan["learned"] == 2
    assert read_run(tmp_path).about["title"] == "Later"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["about.json", "plan.json"]


def test_an_empty_folder_holds_nothing(tmp_path):
    assert read_run(tmp_path) == Run()


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(fl.RunFolderError, match=re.escape(f"{tmp_path / 'no'}: no such folder.")):
        read_run(tmp_path / "no")


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(fl.RunFolderError, match=re.escape(f"{tmp_path / 'file'}: cannot be written to: ")):
        describe_run(tmp_path / "file", title="no")


def test_what_is_given_in_the_place_of_something_else_is_refused_and_nothing_is_written(tmp_path):
    plan = fl.train_only(torch.nn.Linear(2, 2), {"bias": fl.everything})
    for given in ({"explanation": plan}, {"audit": {"moved": 0}}, {"confusion": {"types": []}}):
        with pytest.raises(ValueError, match="does not hold "):
            describe_run(tmp_path / "run", title="no", **given)
    assert not (tmp_path / "run").exists()


def plan_with(line):
    return json.dumps({"tensors": {"a": line}, "learned": 1, "total": 1})


def confusion_with(counts, types=("PER",)):
    return json.dumps({"types": list(types), "rows": "gold", "columns": "predicted", "counts": counts})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("plan.json", '{"tensors":\n  {]', "plan.json:2: damaged: "),
        ("about.json", "[1]", "about.json:1: does not hold a title and facts. Delete it"),
        ("about.json", '{"facts": 1}', "about.json:1: does not hold a title and facts"),
        ("plan.json", "{}", "plan.json:1: does not hold what Plan.to_dict() gives"),
        ("plan.json", '{"tensors": {"a": 1}, "learned": 1, "total": 1}', "plan.json:1: does not hold what Plan"),
        ("plan.json", plan_with({"shape": 1, "learned": 1, "total": 1}), "plan.json:1: does not hold what Plan"),
        ("plan.json", plan_with({"shape": ["<"], "learned": 1, "total": 1}), "plan.json:1: does not hold what Plan"),
        ("plan.json", plan_with({"shape": [1], "learned": "1", "total": 1}), "plan.json:1: does not hold what Plan"),
        ("explanation.json", '{"a": 1}', "explanation.json:1: does not hold what Explanation.to_dict() gives"),
        ("explanation.json", '{"a": {"verdict": "<b>"}}', "explanation.json:1: does not hold what Explanation"),
        ("explanation.json", '{"a": {"verdict": "cut", "groups": {"cut": "<b>"}}}', "explanation.json:1: does not"),
        ("audit.json", '{"frozen_moved": 0}', "audit.json:1: does not hold the counts frozen_compared, frozen_moved, "),
        ("audit.json", '{"frozen_compared": "<b>"}', "audit.json:1: does not hold the counts"),
        ("confusion.json", "{}", "confusion.json:1: does not hold types, the titles of rows and columns, and for T"),
        ("confusion.json", confusion_with([[1]]), "confusion.json:1: does not hold types"),
        ("confusion.json", confusion_with([[1, 2], [3, "<b>"]]), "confusion.json:1: does not hold types"),
        ("confusion.json", confusion_with([[1, 2], [3]]), "confusion.json:1: does not hold types"),
        ("confusion.json", confusion_with([[1, 2], [3, 0]], types=[1]), "confusion.json:1: does not hold types"),
        ("audit.json", "\xff", "audit.json:1: damaged: "),
        ("curves.jsonl", '{"step": 1}\n{"step": 2', "curves.jsonl:2: damaged: "),
        ("curves.jsonl", '{"step": 1}\n{"loss": 2}', 'curves.jsonl:2: expected a point of a curve with an integer "e'),
        ("curves.jsonl", '{"step": 1.5}', "curves.jsonl:1: expected a point of a curve"),
        ("curves.jsonl", "7", "curves.jsonl:1: expected a point of a curve"),
        ("row_changes.safetensors", "short", "row_changes.safetensors: damaged: "),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line_with_its_path_and_line(name, text, says, tmp_path):
    (tmp_path / name).write_bytes(text.encode("latin1"))
    with pytest.raises(fl.RunFolderError, match=re.escape(f"{tmp_path}/{says}")) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("replaced", "words", "says"),
    [
        ({"after": torch.zeros(5, 3)}, None, "5 words for rows of shape (5, 2) and (5, 3)"),
        ({"learns": torch.zeros(4).bool()}, None, "it does not say which rows learned"),
        ({}, ["a"], "1 words for rows"),
        ({}, [1, 2, 3, 4, 5], "its words are not a list of strings"),
        ({}, {"a": 1}, "its words are not a list of strings"),
    ],
)
def test_row_changes_that_do_not_fit_together_are_refused(replaced, words, says, tmp_path):
    changes = row_changes()
    tensors = {name: getattr(changes, name) for name in ("learns", "before", "after", "distances")} | replaced
    metadata = {"format": "frostline-row-changes-1", "words": json.dumps(changes.words if words is None else words)}
    save_file(tensors, tmp_path / "row_changes.safetensors", metadata)
    with pytest.raises(fl.RunFolderError, match=re.escape(says)):
        read_run(tmp_path)
