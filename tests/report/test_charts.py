"""Charts hold the values that were recorded, and show words literally."""

import numpy as np
import pytest
import torch

from frostline.record import Recorded, RowChanges

charts = pytest.importorskip("frostline.report.charts")
Curve = pytest.importorskip("frostline.report.contents").Curve
pytest.importorskip("plotly", reason="charts need plotly, of the extra report")


def rows(values, words):
    return Recorded("rows", list(range(len(values))), torch.tensor(values, dtype=torch.float32), words)


def test_a_curve_is_a_line_for_each_run_with_its_points():
    figure = charts.curves([Curve("loss", "a", "epoch", [1, 2], [3.0, 2.0]), Curve("loss", "b", "epoch", [1], [5.0])])
    assert [(line.name, list(line.x), list(line.y), line.mode) for line in figure.data] == [
        ("a", [1, 2], [3.0, 2.0], "lines"),
        ("b", [1], [5.0], "markers"),
    ]
    assert figure.layout.xaxis.title.text == "epoch"


def test_of_a_very_long_curve_evenly_spread_points_are_drawn_and_the_last():
    steps = list(range(100_001))
    (line,) = charts.curves([Curve("loss", "", "step", steps, [float(step) for step in steps])]).data
    assert len(line.x) <= 2000
    assert line.x[-1] == line.y[-1] == 100_000
    assert set(np.diff(line.x)) == {51}


def test_entries_are_lines_named_by_their_index():
    recorded = Recorded("tensor", [0, 5], torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
    figure = charts.entries({"bias": recorded})
    assert [(line.name, list(line.x), list(line.y)) for line in figure.data] == [
        ("[0, 0]", [0, 5], [1.0, 3.0]),
        ("[0, 1]", [0, 5], [2.0, 4.0]),
    ]


def test_of_many_entries_those_that_moved_furthest_are_drawn_though_they_came_back():
    values = torch.zeros(3, 100)
    values[1, 60:] = torch.arange(40.0) + 1
    figure = charts.entries({"big": Recorded("tensor", [0, 1, 2], values)})
    assert [line.name for line in figure.data] == [f"[{index}]" for index in range(60, 100)]
    assert "40 entries that moved furthest of 100" in figure.layout.title.text


def test_distances_are_from_the_first_point():
    figure = charts.distances("w", rows([[[0, 0], [1, 1]], [[3, 4], [1, 1]]], ["a", "b"]))
    assert {line.name: list(line.y) for line in figure.data} == {"a": [0, 5], "b": [0, 0]}


def test_bars_have_the_furthest_word_on_top_and_at_most_25():
    figure = charts.furthest([f"w{n}" for n in range(40)], np.arange(40.0))
    (bars,) = figure.data
    assert len(bars.x) == 25
    assert (bars.x[-1], figure.layout.yaxis.ticktext[-1]) == (39, "w39")


def test_a_histogram_counts_every_row_that_has_a_finite_distance():
    figure = charts.histogram(np.array([0.0, 1.0, 1.0, 2.0, np.nan]))
    assert sum(figure.data[0].y) == 4


def test_on_the_map_frozen_rows_are_grey_and_moved_rows_have_a_start_and_an_end():
    before, after = torch.zeros(3, 3), torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    changes = RowChanges.from_tables(["a", "b", "c"], before, after, torch.tensor([0, 1]), [2])
    frozen, paths, start, end = charts.map_of_changes(changes)[0].data
    assert (frozen.name, list(frozen.text)) == ("frozen", ["c"])
    assert len(paths.x) == 2 * 3
    assert np.isnan(paths.x[2])
    distances = np.hypot(np.array(end.x) - start.x, np.array(end.y) - start.y)
    assert distances.tolist() == pytest.approx([2, 1])
    assert list(end.customdata) == ["a", "b"]


def test_recorded_rows_that_never_moved_are_grey_on_the_map():
    figure, share = charts.map_of_recorded(
        rows([[[0, 0], [1, 1], [5, 0]], [[3, 4], [1, 1], [5, 1]]], ["far", "still", "near"])
    )
    assert share == pytest.approx(1)  # a map of two numbers shows all of them
    frozen, _, start, end = figure.data
    assert (list(frozen.text), list(end.customdata)) == (["still"], ["far", "near"])
    assert len(start.x) == 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 1), (2, 1, 1), (2, 1, 5), (3, 4, 2), (4, 2, 3, 3)])
@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf")])
def test_any_recorded_rows_have_charts(shape, fill):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values[-1, 0] = fill
    recorded = Recorded("rows", list(range(shape[0])), values, ["word"] * shape[1])
    for figure in (
        charts.map_of_recorded(recorded)[0],
        charts.distances("w", recorded),
        charts.entries({"w": recorded}),
    ):
        assert len(figure.data) >= 1
        assert "NaN" not in figure.to_json()


def test_words_are_shown_literally_and_no_tag_takes_effect():
    hostile = "<b>bold</b><script>x</script>"
    recorded = rows([[[0, 0]], [[1, 1]]], [hostile])
    far = np.array([1.0])
    figures = [
        charts.map_of_recorded(recorded)[0],
        charts.distances("w", recorded),
        charts.furthest([hostile], far),
        charts.entries({hostile: recorded}),
        charts.confusion([hostile], "gold", "predicted", [[1, 0], [0, 0]]),
    ]
    figures.append(charts.curves([Curve(hostile, hostile, "step", [1, 2], [1.0, 2.0])]))
    for figure in figures:
        text = figure.to_json()
        assert "<b>" not in text.encode().decode("unicode_escape")
        assert "&lt;b&gt;" in text.encode().decode("unicode_escape")


def test_a_word_that_is_not_valid_unicode_is_drawn():
    figure = charts.furthest(["caf\udce9"], np.array([1.0]))
    assert figure.layout.yaxis.ticktext == ("caf?",)


def test_every_row_weighs_the_same_in_the_plane_of_movement():
    before = np.zeros((4, 3))
    after = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0], [100.0, 0, 0]])
    plane = charts.plane_of_movement(before, after)
    assert np.abs(plane[:, 0]).argmax() == 1
    assert plane.T @ plane == pytest.approx(np.eye(2), abs=1e-6)


def test_the_confusion_chart_shows_each_count_and_the_share_of_its_row():
    figure = charts.confusion(["LOC", "PER"], "gold", "predicted", [[8, 1, 1], [0, 4, 0], [2, 0, 0]])
    shade, text = figure.data
    assert [list(row) for row in shade.z] == [[0.8, 0.1, 0.1], [0, 1, 0], [1, 0, 0]]
    assert set(zip(text.x, text.y, text.text, strict=True)) == {
        *((0, 0, "8"), (1, 0, "1"), (2, 0, "1"), (1, 1, "4"), (0, 2, "2")),
    }
    assert figure.layout.yaxis.ticktext == figure.layout.xaxis.ticktext == ("LOC", "PER", "nothing")
    assert (figure.layout.yaxis.title.text, figure.layout.xaxis.title.text) == ("gold", "predicted")
    assert figure.layout.yaxis.autorange == "reversed"  # the first row is on top


def test_words_on_the_map_do_not_touch():
    ends = np.array([[0.5, 0.5], [0.51, 0.5], [0.5, 0.9], [0.0, 0.5]])
    assert charts._without_overlap(ends, ["first", "near", "far", "outside"]) == {0, 2}


def test_the_range_of_a_map_covers_frozen_rows_too():
    before = torch.zeros(3, 2)
    before[2] = torch.tensor([90.0, -70.0])
    after = before.clone()
    after[0, 0], after[1, 1] = 1, 1
    figure, _ = charts.map_of_changes(
        RowChanges.from_tables(["a", "b", "frozen"], before, after, torch.tensor([0, 1]), [2])
    )
    for points in figure.data:
        for axis, values in (("xaxis", points.x), ("yaxis", points.y)):
            low, high = figure.layout[axis].range
            assert all(low <= value <= high for value in values if value is not None and not np.isnan(value))


def test_a_map_says_how_much_of_the_movement_it_shows():
    before, after = torch.zeros(10, 10), torch.eye(10)
    _, share = charts.map_of_changes(RowChanges.from_tables(list("abcdefghij"), before, after, torch.arange(10)))
    assert share == pytest.approx(0.2)  # ten directions, of which a map has two


def test_curves_of_one_unit_share_a_panel_and_keep_their_names():
    lines = [
        Curve("w1 [weight]", "", "step", [0, 1], [1.0, 2.0]),
        Curve("w2*w3 [weight]", "", "step", [0, 1], [2.0, 2.0]),
    ]
    figure = charts.curves(lines)
    assert figure.layout.title.text == "weight"
    assert [line.name for line in figure.data] == ["w1 [weight]", "w2*w3 [weight]"]
    recorded = {name: Recorded("tensor", [0, 1], torch.randn(2, 2)) for name in ("w1 [weight]", "w2*w3 [weight]")}
    figure = charts.entries(recorded)
    assert [line.name for line in figure.data] == [f"{name} [{index}]" for name in recorded for index in (0, 1)]
    assert figure.layout.title.text == "weight"


def test_f1_by_type_has_the_commonest_type_first():
    types = {
        "a": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "gold": 1, "found": 2},
        "<b>": {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "gold": 7, "found": 3},
    }
    figure = charts.f1_by_type(types)
    assert figure.layout.xaxis.ticktext == ("&lt;b&gt;", "a")
    assert {bars.name: list(bars.y) for bars in figure.data}["recall"] == [50, 25]
