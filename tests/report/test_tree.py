"""The tree shows each tensor once with its verdict, alarms open and first, and escapes every name."""

import re

import torch

import frostline as fl
from frostline.probe.explain.verdicts import VERDICTS
from frostline.report.tree import leaves, legend, tree

EXPLAINED = {
    "a.w": {"verdict": "cut", "reason": "detach", "where": "model.py:31", "notes": ["listed twice"]},
    "a.b": {"verdict": "learns", "reason": "", "where": None, "notes": []},
    "head": {"verdict": "frozen by plan", "reason": None, "where": None, "notes": None},
}


def test_a_plan_alone_gives_verdicts_in_the_words_of_an_explanation():
    model = torch.nn.Sequential(torch.nn.Embedding(9, 2), torch.nn.Linear(2, 3))
    plan = fl.train_only(model, {"0.weight": fl.rows([1, 2]), "1.weight": fl.everything})
    found = {leaf.name: (leaf.verdict, leaf.reason, leaf.shape) for leaf in leaves(plan.to_dict(), None)}
    assert found == {
        "0.weight": ("learns in part", "2 of 9 rows", "9 × 2"),
        "1.weight": ("learns", "", "3 × 2"),
        "1.bias": ("frozen by plan", "", "3"),
    }


def test_entries_tied_names_and_notes_are_reasons():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    plan = fl.train_only(model, {"a.weight": fl.entries(torch.eye(2).bool())})
    (leaf,) = leaves(plan.to_dict(), None)
    assert (leaf.verdict, leaf.reason) == ("learns in part", "2 of 4 entries; tied to b.weight")


def test_an_explanation_has_the_last_word_and_the_plan_the_sizes():
    plan = {"tensors": {"a.w": {"shape": [2, 2], "learns": "everything", "count": None, "learned": 4, "total": 4}}}
    first, *rest = leaves(plan, EXPLAINED)
    assert (first.verdict, first.reason, first.where, first.shape, first.learned) == (
        "cut",
        "detach; listed twice",
        "model.py:31",
        "2 × 2",
        0,
    )
    assert [leaf.name for leaf in rest] == ["a.b", "head"]


def test_groups_of_rows_and_tied_names_are_reasons_and_no_note_is_repeated():
    finding = {"verdict": "learns in part", "reason": "", "groups": {"learns": 1200, "zero gradient": 3}}
    (leaf,) = leaves(None, {"a": finding | {"notes": ["zero gradient", "tied"], "tied": ["b", "c"]}})
    assert leaf.reason == "1,200 learns, 3 zero gradient; tied to b, c; zero gradient"


def test_alarms_are_all_but_four_verdicts():
    found = leaves(None, {verdict: {"verdict": verdict} for verdict in VERDICTS})
    assert {leaf.verdict for leaf in found if leaf.alarm} == set(VERDICTS) - {
        "learns",
        "learns in part",
        "frozen by plan",
        "frozen",
    }


def test_a_cut_is_marked_and_has_its_line_and_its_module_is_open():
    html = tree(leaves(None, EXPLAINED | {f"big.inner{n}.w": {"verdict": "learns"} for n in range(40)}))
    assert '<span class="verdict alarm">cut</span>' in html
    assert "<code>model.py:31</code>" in html
    module = {name: bool(is_open) for is_open, name in re.findall(r"<details( open)?>.*?<b>(.*?)</b>", html)}
    assert module == {"a": True, "big": True} | {f"inner{n}": False for n in range(40)}
    assert "2 tensors, 1 alarm<" in html


def test_the_legend_counts_verdicts_the_worst_first():
    text = re.sub(r"<.*?>", " ", legend(leaves(None, EXPLAINED))).split()
    assert text == ["1", "cut", "1", "learns", "1", "frozen", "by", "plan"]


def test_what_was_to_learn_and_does_not_is_not_counted_as_learning():
    tensor = {"shape": [4], "learns": "everything", "count": None, "learned": 4, "total": 4}
    plan = {"tensors": {"a.w": tensor, "a.b": tensor}}
    assert "4 of 8 parameters learn, 1 alarm<" in tree(leaves(plan, EXPLAINED))
    assert "8 of 8 parameters learn<" in tree(leaves(plan, None))


def test_a_module_that_only_holds_another_is_one_line():
    html = tree(leaves(None, {"model.layers.0.w": {"verdict": "learns"}, "model.layers.1.w": {"verdict": "learns"}}))
    assert re.findall(r"<b>(.*?)</b>", html) == ["model.layers", "0", "1"]


def test_names_and_reasons_are_escaped():
    hostile = "<script>alert('x')</script>"
    finding = {"verdict": hostile, "reason": hostile, "where": hostile, "notes": [hostile]}
    html = tree(leaves(None, {f"{hostile}.a": finding, f"a.{hostile}": finding})) + legend(leaves(None, {"a": finding}))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 5
