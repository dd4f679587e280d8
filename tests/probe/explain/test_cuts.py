"""Each way to cut a gradient is named, with its line; and so is a parameter that is not used at all."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import frostline as fl

from . import cuts
from .cases import line_of
from .cuts import CUTS, HiddenWeight


def before_and_after(cut):
    """Return two layers, and the loss with `cut` between them."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"before": nn.Linear(4, 4), "after": nn.Linear(1, 1)})
    x = torch.randn(8, 4)
    return model, lambda: model["after"](cut(model["before"](x)).reshape(-1, 1)).square().mean()


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")
@pytest.mark.parametrize("name", CUTS)
def test_a_cut_is_named_with_its_line(name):
    model, loss_fn = before_and_after(CUTS[name])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = fl.explain(model, loss_fn, optimizer).to_dict()
    assert {parameter: finding["verdict"] for parameter, finding in found.items()} == {
        "before.weight": "cut",
        "before.bias": "cut",
        "after.weight": "learns",
        "after.bias": "learns",
    }
    for parameter in ("before.weight", "before.bias"):
        path, _, line = found[parameter]["where"].rpartition(":")
        assert (Path(path).name, int(line)) == ("cuts.py", line_of(cuts.__file__, name))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("detach", "detach: return h.detach()"),
        ("no_grad", "no_grad: return h * 2"),
        ("data", ".data: return h.data"),
        ("new_parameter", "nn.Parameter: return nn.Parameter(h) * 2"),
        ("stop_gradient", "stop_gradient: return fl.stop_gradient(h)"),
        ("function_returning_none", "Sign.apply: return Sign.apply(h)"),
        ("function_without_backward", "NoBackward.apply without backward: return NoBackward.apply(h)"),
        ("inference_mode", "inference_mode: h = h * 2"),
    ],
)
def test_the_reason_is_the_call_and_the_line(name, call):
    model, loss_fn = before_and_after(CUTS[name])
    assert fl.explain(model, loss_fn).to_dict()["before.weight"]["reason"] == call


def test_a_weight_that_a_function_uses_without_taking_it_is_cut_there():
    model, x = nn.Linear(4, 1), torch.randn(8, 4, requires_grad=True)
    found = fl.explain(model, lambda: HiddenWeight.apply(x, model).sum()).to_dict()
    assert found["weight"]["verdict"] == "cut"
    assert found["weight"]["where"].endswith(f"cuts.py:{line_of(cuts.__file__, 'hidden')}")


def test_a_cut_that_is_only_logged_is_not_blamed():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 1)), torch.randn(8, 4)
    logged = []

    def loss_fn():
        h = model[0](x)
        logged.append(h.detach().abs().max().item())
        return model[1](h).mean() + model[2](h.detach()).mean()

    assert fl.explain(model, loss_fn).alarms == []
    assert len(logged) == 1


@pytest.mark.parametrize(("third", "more"), [(False, ""), (True, ", and 1 more")])
def test_of_several_cuts_the_first_two_are_named_and_the_others_counted(third, more):
    model, x = nn.ModuleDict({"before": nn.Linear(4, 4), "after": nn.Linear(4, 1)}), torch.randn(8, 4)

    def loss_fn():
        h = model["before"](x)
        first = h.detach()  # <- first of two
        second = h.data  # <- second of two
        if third:
            second = second + h.relu().detach()
        return model["after"](first + second).mean()

    found = fl.explain(model, loss_fn).to_dict()["before.weight"]
    assert found["where"].endswith(f":{line_of(__file__, 'first of two')}")
    second = f"{found['where'].rpartition(':')[0]}:{line_of(__file__, 'second of two')}"
    assert found["reason"] == f"detach (also .data, {second}{more}): first = h.detach()"


def test_a_cut_in_an_installed_package_is_shown_in_the_users_line():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    encoder = transformers.T5EncoderModel(transformers.T5Config(**sizes))
    ids = torch.randint(20, (2, 5))

    def loss_fn():
        with torch.no_grad():
            h = encoder(input_ids=ids).last_hidden_state  # <- installed
        return h.sum()

    explanation = fl.explain(encoder, loss_fn)
    found = explanation.to_dict()["encoder.block.0.layer.0.SelfAttention.q.weight"]
    assert found["verdict"] == "cut"
    assert found["where"].endswith(f":{line_of(__file__, 'installed')}")
    assert re.fullmatch(
        r"no_grad: h = encoder\(input_ids=ids\)\.last_hidden_state \(in transformers/models/t5/modeling_t5\.py:\d+\)",
        found["reason"],
    )
    assert str(explanation).count("! cut") == 1
    assert f"* ({len(explanation.findings)} tensors)" in str(explanation)
    assert "The loss requires no gradient: nothing can learn from it." in str(explanation)


def test_where_all_is_installed_its_innermost_line_is_named_and_not_the_one_that_asks(tmp_path):
    path = tmp_path / "site-packages" / "installed.py"
    path.parent.mkdir()
    path.write_text(
        "import torch\n"
        "model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))\n"
        "def features(): return model[0](torch.ones(2)).detach()\n"
        "def loss_fn(): return model[1](features()).sum()\n"
    )
    spec = importlib.util.spec_from_file_location("installed", path)
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    found = fl.explain(installed.model, installed.loss_fn).to_dict()
    assert found["0.weight"]["where"] == f"{path}:3"
    assert found["0.weight"]["reason"] == "detach: def features(): return model[0](torch.ones(2)).detach()"
    found = fl.explain(installed.model, lambda: installed.loss_fn()).to_dict()  # <- asks
    assert found["0.weight"]["where"].endswith(f"{Path(__file__).name}:{line_of(__file__, 'asks')}")
    assert found["0.weight"]["reason"].endswith(" (in installed.py:3)")


def test_a_loss_that_has_become_a_number_is_cut_where_it_did():
    model, x = nn.Linear(4, 1), torch.randn(8, 4)

    def loss_fn():
        return model(x).mean().item()  # <- number

    found = fl.explain(model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)).to_dict()
    assert {finding["verdict"] for finding in found.values()} == {"cut"}
    assert found["weight"]["where"].endswith(f":{line_of(__file__, 'number')}")


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.dropped, self.never, self.asked, self.logged, self.shape = (nn.Linear(4, 1) for _ in range(6))

    def forward(self, x):
        self.dropped(x)
        if self.asked(x).sum() > 0:
            x = x + 1
        print(f"{self.logged(x).mean().item():.3f}")  # <- logged
        return self.used(x) + torch.zeros_like(self.shape(x)) + torch.ones(1).expand_as(self.shape(x))


def test_what_is_not_used_says_how(capsys):
    model, x = Unused(), torch.randn(8, 4)
    found = fl.explain(model, lambda: model(x).mean()).to_dict()
    assert capsys.readouterr().out
    unused = {name: finding for name, finding in found.items() if finding["verdict"] == "unused"}
    assert {name.partition(".")[0] for name in unused} == {"dropped", "never", "asked", "logged", "shape"}
    assert found["used.weight"]["verdict"] == "learns"
    assert found["dropped.weight"]["reason"] == "used, but its value does not reach the loss"
    assert found["never.weight"]["reason"] == "nothing in this forward uses it"
    assert found["asked.weight"]["reason"] == "only a Python `if` asks for its value"
    assert found["logged.weight"]["reason"] == "its value leaves torch by item and does not come back"
    assert found["logged.weight"]["where"].endswith(f":{line_of(__file__, 'logged')}")
    assert found["never.weight"]["where"] is None


class Logged(nn.Module):
    """A loss of its own that is logged and then forgotten, beside numbers of other origins."""

    def __init__(self):
        super().__init__()
        self.main, self.side = nn.Linear(4, 1), nn.Linear(4, 1)
        self.weight, self.options = 0.37, {"scale": 0.73}

    def forward(self, x, temperature):
        log = [self.side(x).square().mean().item()]
        return self.main(x).mean() * self.weight / temperature + 0.59 * len(log)


def test_a_number_that_was_only_logged_is_not_taken_for_another():
    model, x = Logged(), torch.randn(8, 4)
    scale = 0.91

    def loss_fn():
        model.side(x).sum().item()
        return model(x, 1.7) * scale * model.options["scale"]

    found = fl.explain(model, loss_fn).to_dict()
    assert found["side.weight"]["verdict"] == "unused"
    assert found["main.weight"]["verdict"] == "learns"
