"""The files for TensorBoard, read back by TensorBoard's own reader."""

import sys

import pytest
import torch

import frostline as fl
from frostline.record import read_record
from frostline.report import write_tensorboard

reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard, of the extra report"
)


def read(folder):
    found = reader.EventAccumulator(str(folder), {"scalars": 0, "histograms": 0})
    found.Reload()
    return found


def test_scalars_are_those_of_the_record_at_their_steps(recorded, tmp_path):
    found = read(write_tensorboard(recorded, tmp_path / "logs"))
    record = read_record(recorded)
    for name in ("loss", "norm"):
        events = found.Scalars(name)
        assert [event.step for event in events] == record[name].steps
        assert torch.equal(torch.tensor([event.value for event in events]), record[name].values.float())


def test_histograms_hold_every_entry_of_every_point(recorded, tmp_path):
    found = read(write_tensorboard(recorded, tmp_path / "logs"))
    record = read_record(recorded)
    assert sorted(found.Tags()["histograms"]) == ["bias", "words"]
    for name in ("bias", "words"):
        events = found.Histograms(name)
        assert [event.step for event in events] == record[name].steps
        last = record[name].values[-1].double()
        assert events[-1].histogram_value.num == last.numel()
        assert events[-1].histogram_value.min == last.min().item()
        assert events[-1].histogram_value.sum == pytest.approx(last.sum().item())


def test_runs_of_curves_are_runs_of_tensorboard(explained, tmp_path):
    folder = write_tensorboard(explained, tmp_path / "logs")
    for name in ("a", "b_"):
        events = read(folder / name).Scalars("loss")
        assert [(event.step, event.value) for event in events] == [(n, pytest.approx(1 / n)) for n in (1, 2, 3)]
    assert all(path.is_relative_to(folder) for path in tmp_path.rglob("*") if path != folder)


def test_the_projector_has_a_word_for_each_row(recorded, trained, tmp_path):
    for name, run, count, width in (("recorded", recorded, 11, 4), ("trained", trained, 9, 6)):
        folder = write_tensorboard(run, tmp_path / name)
        config = (folder / "projector_config.pbtxt").read_text()
        assert config.count("tensor_name") == 2
        tables = list(folder.rglob("tensors.tsv"))
        assert len(tables) == 2
        for table in tables:
            rows = [line.split("\t") for line in table.read_text().splitlines()]
            words = (table.parent / "metadata.tsv").read_text().splitlines()
            assert str(table.relative_to(folder)) in config
            assert (len(rows), len(words)) == (count, count)
            assert {len(row) for row in rows} == {width}
    words = next((tmp_path / "recorded").rglob("metadata.tsv")).read_text(encoding="utf-8").splitlines()
    assert {"<script>alert(1)</script>", "two lines", "(blank)", "caf?"} <= set(words)


def test_the_last_rows_of_the_record_are_the_table_after(recorded, tmp_path):
    folder = write_tensorboard(recorded, tmp_path / "logs")
    words = read_record(recorded)["words"]
    tables = {table.parent.parent.name: table for table in folder.rglob("tensors.tsv")}
    assert sorted(tables) == ["00000", "00020"]
    for step, values in (("00000", words.values[0]), ("00020", words.values[-1])):
        rows = [[float(value) for value in line.split("\t")] for line in tables[step].read_text().splitlines()]
        assert torch.equal(torch.tensor(rows), values)


def test_values_that_are_not_finite_are_left_out_of_histograms(tmp_path):
    value = torch.tensor([1.0, float("nan")])
    with fl.Recorder(tmp_path / "run", {"value": value, "rows": (value, {"a": 0, "b": 1})}) as recorder:
        recorder(loss=float("inf"))
        value.fill_(float("nan"))
        recorder(loss=1.0)
    found = read(write_tensorboard(tmp_path / "run", tmp_path / "logs"))
    assert [event.histogram_value.num for event in found.Histograms("value")] == [1]
    assert found.Scalars("loss")[0].value == float("inf")


def test_a_folder_that_is_not_empty_is_refused(recorded, tmp_path):
    (tmp_path / "notes").touch()
    with pytest.raises(fl.RunFolderError, match="not an empty folder, so the runs would be mixed up"):
        write_tensorboard(recorded, tmp_path)
    with pytest.raises(fl.RunFolderError, match="not an empty folder"):
        write_tensorboard(recorded, tmp_path / "notes")


def test_without_tensorboard_one_line_says_what_to_install(recorded, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(fl.MissingExtraError, match=r"pip install 'frostline\[report\]'"):
        write_tensorboard(recorded, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
