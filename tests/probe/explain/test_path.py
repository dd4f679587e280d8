"""The way from the loss to a parameter has the calls that were made, in their order, with the user's lines."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.cli import main
from frostline.record import describe_run, read_run


class Model(nn.Module):
    """Words, a detour that is longer, and a part that is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 3)
        self.head = nn.Linear(3, 2)
        self.unused = nn.Linear(1, 1)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, ids: Tensor) -> Tensor:
        """Look up, scale, score."""
        words = self.embed(ids)
        scale = self.factor.item()
        detour = words.exp().log().sum()
        scores: Tensor = self.head(words.tanh() * scale)
        return scores + detour.detach()


def _line(text: str) -> int:
    lines, start = inspect.getsourcelines(Model)
    return start + next(index for index, line in enumerate(lines) if text in line)


def _explain(name: str, rows: bool = False, ids: Tensor | None = None) -> fl.probe.Explanation:
    torch.manual_seed(0)
    model = Model()
    if rows:
        fl.train_only(model, {"*": fl.everything, "embed.weight": fl.rows([1, 2])})
    ids = torch.tensor([1, 2, 3]) if ids is None else ids
    return fl.explain(model, lambda: model(ids).mean(), path_to=name)


@pytest.mark.parametrize("rows", [False, True])
def test_the_calls_are_those_from_the_loss_back_to_the_parameter(rows: bool) -> None:
    path = _explain("embed.weight", rows).path
    assert path is not None
    assert [call.call for call in path.calls] == ["mean", "add", "linear", "mul", "tanh", "embedding"]
    assert all(call.gradient for call in path.calls)
    assert (path.end, path.cut) == ("", None)
    where = {call.call: (call.where or "").rpartition(":") for call in path.calls}
    assert where["linear"][0].endswith("test_path.py")
    assert int(where["embedding"][2]) == _line("words = self.embed(ids)")
    assert int(where["linear"][2]) == int(where["tanh"][2]) == _line("scores: Tensor")
    assert next(call.source for call in path.calls if call.call == "embedding") == "words = self.embed(ids)"


def test_where_no_gradient_comes_the_way_of_the_value_is_shown_and_the_call_that_cuts() -> None:
    path = _explain("factor").path
    assert path is not None
    assert [call.call for call in path.calls] == ["mean", "add", "linear", "mul", "item"]
    assert path.cut == 4
    assert path.end.startswith("no gradient: item cuts it in ")
    assert f"test_path.py:{_line('scale = self')}" in str(path)


def test_a_parameter_that_is_unused_or_frozen_is_said_to_be() -> None:
    unused = _explain("unused.weight").path
    assert unused is not None
    assert (unused.calls, unused.end) == ((), "its value does not reach the loss")
    model = Model()
    model.embed.weight.requires_grad_(False)
    frozen = fl.explain(model, lambda: model(torch.tensor([1])).mean(), path_to="embed.weight").path
    assert frozen is not None
    assert frozen.end == "it requires no gradient"
    assert frozen.cut is None
    assert frozen.calls[-1].call == "embedding"


def test_a_custom_function_and_a_write_in_place_are_on_the_way() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return 2 * gradient

    model = nn.Linear(2, 2, bias=False)

    def loss() -> Tensor:
        state = torch.zeros(3, 2)
        state[0] = Twice.apply(model(torch.ones(2)))
        return state.sum()

    path = fl.explain(model, loss, path_to="weight").path
    assert path is not None
    assert [call.call for call in path.calls] == ["sum", "setitem", "Twice.apply", "linear"]


def test_the_name_of_no_parameter_is_refused_before_the_pass() -> None:
    with pytest.raises(fl.PatternError, match=r"path_to: the model has no parameter 'embd\.weight'.*embed\.weight"):
        fl.explain(Model(), lambda: pytest.fail("it ran"), path_to="embd.weight")


def test_without_path_to_there_is_no_path_and_the_findings_are_the_same() -> None:
    torch.manual_seed(0)
    model = Model()
    plain = fl.explain(model, lambda: model(torch.tensor([1, 2, 3])).mean())
    assert plain.path is None
    with_path = _explain("factor")
    assert {name: found["verdict"] for name, found in plain.to_dict().items()} == {
        name: found["verdict"] for name, found in with_path.to_dict().items()
    }
    assert str(with_path).startswith(str(plain).partition("\n")[0])


def test_the_command_prints_it_and_the_report_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    (tmp_path / "made.py").write_text(
        "import torch\nfrom torch import nn\ndef make():\n    model = nn.Linear(2, 1)\n"
        "    def loss():\n        return model(torch.ones(1, 2)).detach().sum() + model.bias.sum()\n"
        "    return model, loss\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    assert main(["explain", "made.py:make", "--path-to", "weight", "--run-folder", "run"]) == 1
    printed = capsys.readouterr().out
    assert "<- detach" in printed
    assert "(no gradient: detach cuts it in made.py:6)" in printed
    path = read_run("run").path
    assert path is not None
    assert [call["call"] for call in path["calls"]] == ["add", "sum", "detach", "linear"]
    assert main(["report", "run"]) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert '<li class="cut"><b>detach</b> <span>made.py:6</span>' in page
    assert '<li class="beyond"><b>linear</b>' in page
    damaged = json.loads((tmp_path / "run" / "path.json").read_text("utf-8"))
    del damaged["calls"][0]["source"]
    (tmp_path / "run" / "path.json").write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(fl.RunFolderError, match=r"path\.json:1: does not hold a name, its end"):
        read_run("run")
    describe_run("other", explanation=_explain("factor"))
    assert read_run("other").path is not None
