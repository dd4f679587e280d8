"""What `explain` says of single faults and good ways, and that it leaves nothing behind."""

import copy
import importlib.util
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.probe.verdicts import ALARMS, VERDICTS, Seen, words_for

# --- the words --------------------------------------------------------------------------------------------------------

LEARNING = {
    "requires_grad": True,
    "by_plan": False,
    "gradient": "numbers",
    "awake": False,
    "finite": True,
    "reaches": True,
    "held": 1,
    "rates": [0.1],
    "moved": True,
    "in_part": False,
    "frozen_part_moved": False,
}


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({}, ["learns"]),
        ({"in_part": True}, ["learns in part"]),
        ({"held": None, "rates": [], "moved": None}, ["learns"]),
        ({"requires_grad": False, "gradient": "none", "moved": False}, ["frozen"]),
        ({"requires_grad": False, "gradient": "none", "moved": False, "by_plan": True}, ["frozen by plan"]),
        ({"requires_grad": False, "gradient": "none"}, ["moves without gradient", "frozen"]),
        ({"requires_grad": False, "gradient": "none", "by_plan": True}, ["moves without gradient", "frozen by plan"]),
        ({"finite": False}, ["not finite"]),
        ({"gradient": "none", "moved": False}, ["cut"]),
        ({"gradient": "none", "moved": False, "finite": False}, ["not finite", "cut"]),
        ({"gradient": "none", "moved": False, "reaches": False}, ["unused"]),
        ({"gradient": "none", "moved": False, "held": 0, "rates": []}, ["cut", "not in optimizer"]),
        ({"gradient": "none"}, ["cut", "moves without gradient"]),
        ({"gradient": "none", "reaches": False}, ["unused", "moves without gradient"]),
        ({"held": 0, "rates": [], "moved": False}, ["not in optimizer"]),
        ({"held": 0, "rates": [], "moved": False, "gradient": "zero"}, ["not in optimizer", "zero gradient"]),
        ({"rates": [0.0], "moved": False}, ["learning rate 0"]),
        ({"rates": [0.0], "moved": False, "gradient": "zero"}, ["learning rate 0", "zero gradient"]),
        ({"rates": [0.0, 0.1]}, ["learns"]),
        ({"gradient": "zero", "moved": False}, ["zero gradient"]),
        ({"gradient": "zero"}, ["moves without gradient", "zero gradient"]),
        ({"gradient": "zero", "awake": True}, ["learns", "zero gradient"]),
        ({"gradient": "zero", "awake": True, "moved": False}, ["learns", "zero gradient"]),
        ({"gradient": "zero", "awake": True, "held": 0, "rates": [], "moved": False}, ["not in optimizer"]),
        ({"moved": False}, ["rounds away"]),
        ({"moved": False, "in_part": True}, ["rounds away"]),
        ({"moved": None}, ["learns"]),
        ({"in_part": True, "frozen_part_moved": True}, ["moves without gradient", "learns in part"]),
    ],
)
def test_the_first_word_that_holds_is_the_verdict(seen, words):
    assert words_for(Seen(**LEARNING | seen)) == words


def test_whatever_is_seen_there_is_a_verdict_and_notes_stand_in_order():
    choices = itertools.product(
        *([True, False] for _ in range(5)),
        ["none", "zero", "numbers"],
        [(None, []), (0, []), (1, [0.0]), (2, [1.0, 1.0])],
    )
    for requires_grad, by_plan, finite, reaches, in_part, gradient, (held, rates) in choices:
        for moved in (None, False, True):
            words = words_for(
                Seen(requires_grad, by_plan, gradient, False, finite, reaches, held, rates, moved, in_part, False)
            )
            assert set(words) <= set(VERDICTS)
            places = [VERDICTS.index(word) for word in words]
            assert places == sorted(places) or words[0] == "moves without gradient"


def test_eight_words_are_alarms():
    assert set(VERDICTS) - ALARMS == {"learns", "learns in part", "frozen by plan", "frozen"}


# --- cuts and their lines ---------------------------------------------------------------------------------------------

HERE = Path(__file__)


def line_of(mark):
    """The number of the line of this file that ends with the comment `# <- mark`."""
    (number,) = [n for n, text in enumerate(HERE.read_text().splitlines(), 1) if text.endswith(f"# <- {mark}")]
    return number


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return None


class OneOfTwo(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return x + y

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Unmarked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = x * 2
        ctx.mark_non_differentiable(out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2


class HiddenWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        return F.linear(x, layer.weight, layer.bias)  # <- hidden

    @staticmethod
    def backward(ctx, gradient):
        return gradient.expand(8, 4), None


def detach(h):
    return h.detach()  # <- detach


def detach_in_place(h):
    h = h * 1
    h.detach_()  # <- detach_
    return h


def data(h):
    return h.data  # <- data


def item(h):
    return torch.ones(8, 1) * h.sum().item()  # <- item


def item_and_back(h):
    number = h.sum().item()  # <- item_and_back
    return torch.tensor([number])


def computed_number(h):
    number = h.sum().item()  # <- computed_number
    number = number * 2 + 1
    return torch.ones(8, 1) * number


def to_float(h):
    return torch.ones(8, 1) * float(h.sum())  # <- to_float


def tolist(h):
    return torch.tensor(h.tolist())  # <- tolist


def listed(h):
    values = [row.sum().item() for row in h]  # <- listed
    return torch.FloatTensor(values)


def numpy_detached(h):
    array = h.detach().numpy()  # <- numpy_detached
    return torch.from_numpy(array)


def numpy_under_no_grad(h):
    with torch.no_grad():
        h = h * 1  # <- numpy_under_no_grad
    return torch.as_tensor(np.exp(h.numpy()))


def no_grad(h):
    with torch.no_grad():
        return h * 2  # <- no_grad


def no_grad_around_a_function(h):
    with torch.no_grad():
        return twice(h)  # <- no_grad_around_a_function


def twice(h):
    return h * 2


@torch.no_grad()
def no_grad_decorator(h):
    return twice(h)  # <- no_grad_decorator


def set_grad_enabled(h):
    with torch.set_grad_enabled(False):
        return h * 2  # <- set_grad_enabled


def inference_mode(h):
    with torch.inference_mode():
        h = h * 2  # <- inference_mode
    return h.clone()


def comparison(h):
    return (h > 0).float()  # <- comparison


def argmax(h):
    return h.argmax(1, keepdim=True).float()  # <- argmax


def indices_of_max(h):
    return h.max(1).indices.float()  # <- indices_of_max


def one_hot(h):
    best = h.argmax(1)  # <- one_hot
    return F.one_hot(best, 4).float()


def integer_cast(h):
    return h.long().float()  # <- integer_cast


def integer_to(h):
    return h.to(torch.int32) * 1.0  # <- integer_to


def stop_gradient(h):
    return fl.stop_gradient(h)  # <- stop_gradient


def written_under_no_grad(h):
    out = torch.zeros(8, 4)
    with torch.no_grad():
        out.copy_(h)  # <- written_under_no_grad
    return out


def written_through_data(h):
    out = torch.zeros(8, 4)
    out.data[:] = h  # <- written_through_data
    return out


def data_assigned(h):
    out = torch.zeros(8, 4)
    out.data = h  # <- data_assigned
    return out


def written_through_a_detached_row(h):
    out = torch.zeros(8, 4)
    row = out.detach()[0]
    row += h.sum(0)  # <- written_through_a_detached_row
    return out


def written_through_out(h):
    out = torch.zeros(8, 4)
    with torch.no_grad():
        torch.mul(h, 2, out=out)  # <- written_through_out
    return out


def new_parameter(h):
    return nn.Parameter(h) * 2  # <- new_parameter


def variable(h):
    return torch.autograd.Variable(h.data) * 2  # <- variable


def tensor_of_tensor(h):
    return torch.tensor(h.detach().clone())[0]  # <- tensor_of_tensor


def leaf_again(h):
    h = h.detach()  # <- leaf_again
    h.requires_grad_()
    return h * 2


def function_returning_none(h):
    return Sign.apply(h)  # <- function_returning_none


def function_returning_one_of_two(h):
    return OneOfTwo.apply(torch.ones(8, 4, requires_grad=True), h)  # <- function_returning_one_of_two


def function_without_gradient(h):
    return Unmarked.apply(h)  # <- function_without_gradient


def function_without_backward(h):
    return NoBackward.apply(h)  # <- function_without_backward


def multinomial(h):
    return torch.multinomial(h.softmax(1), 1).float()  # <- multinomial


def gradient_without_graph(h):
    x = torch.ones(8, 4, requires_grad=True)
    (slope,) = torch.autograd.grad((h * x).sum(), x)  # <- gradient_without_graph
    return slope


def functional_call_with_detached(h):
    layer = nn.Linear(4, 4)
    weights = {"weight": h[:4].detach(), "bias": torch.zeros(4)}  # <- functional_call_with_detached
    return torch.func.functional_call(layer, weights, (torch.ones(8, 4),))


def clone_of_a_copy(h):
    return copy.copy(h.detach()).requires_grad_() + 1  # <- clone_of_a_copy


def cut_then_cut_again(h):
    h = h.detach()  # <- cut_then_cut_again
    return (h * 2).data


CUTS = {
    "detach": detach,
    "detach_": detach_in_place,
    "data": data,
    "item": item,
    "item_and_back": item_and_back,
    "computed_number": computed_number,
    "to_float": to_float,
    "tolist": tolist,
    "listed": listed,
    "numpy_detached": numpy_detached,
    "numpy_under_no_grad": numpy_under_no_grad,
    "no_grad": no_grad,
    "no_grad_around_a_function": no_grad_around_a_function,
    "no_grad_decorator": no_grad_decorator,
    "set_grad_enabled": set_grad_enabled,
    "inference_mode": inference_mode,
    "comparison": comparison,
    "argmax": argmax,
    "indices_of_max": indices_of_max,
    "one_hot": one_hot,
    "integer_cast": integer_cast,
    "integer_to": integer_to,
    "stop_gradient": stop_gradient,
    "written_under_no_grad": written_under_no_grad,
    "written_through_data": written_through_data,
    "data_assigned": data_assigned,
    "written_through_a_detached_row": written_through_a_detached_row,
    "written_through_out": written_through_out,
    "new_parameter": new_parameter,
    "variable": variable,
    "tensor_of_tensor": tensor_of_tensor,
    "leaf_again": leaf_again,
    "function_returning_none": function_returning_none,
    "function_returning_one_of_two": function_returning_one_of_two,
    "function_without_gradient": function_without_gradient,
    "function_without_backward": function_without_backward,
    "multinomial": multinomial,
    "gradient_without_graph": gradient_without_graph,
    "functional_call_with_detached": functional_call_with_detached,
    "clone_of_a_copy": clone_of_a_copy,
    "cut_then_cut_again": cut_then_cut_again,
}


def before_and_after(cut):
    """A layer before and one after, and the loss with `cut` between them."""
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
    assert {one: finding["verdict"] for one, finding in found.items()} == {
        "before.weight": "cut",
        "before.bias": "cut",
        "after.weight": "learns",
        "after.bias": "learns",
    }
    for one in ("before.weight", "before.bias"):
        path, _, line = found[one]["where"].rpartition(":")
        assert (Path(path).name, int(line)) == (HERE.name, line_of(name))


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
    assert found["weight"]["where"].endswith(f"{HERE.name}:{line_of('hidden')}")


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
    assert found["where"].endswith(f":{line_of('first of two')}")
    second = f"{found['where'].rpartition(':')[0]}:{line_of('second of two')}"
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
    assert found["where"].endswith(f":{line_of('installed')}")
    assert re.fullmatch(
        r"no_grad: h = encoder\(input_ids=ids\)\.last_hidden_state \(in transformers/models/t5/modeling_t5\.py:\d+\)",
        found["reason"],
    )
    assert str(explanation).count("! cut") == 1
    assert f"* ({len(explanation.findings)})" in str(explanation)
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
    assert found["0.weight"]["where"].endswith(f"{HERE.name}:{line_of('asks')}")
    assert found["0.weight"]["reason"].endswith(" (in installed.py:3)")


def test_a_loss_that_has_become_a_number_is_cut_where_it_did():
    model, x = nn.Linear(4, 1), torch.randn(8, 4)

    def loss_fn():
        return model(x).mean().item()  # <- number

    found = fl.explain(model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)).to_dict()
    assert {finding["verdict"] for finding in found.values()} == {"cut"}
    assert found["weight"]["where"].endswith(f":{line_of('number')}")


# --- not used ---------------------------------------------------------------------------------------------------------


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
    assert found["logged.weight"]["where"].endswith(f":{line_of('logged')}")
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


# --- optimizers -------------------------------------------------------------------------------------------------------


def two_layers():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(8, 4)
    return model, lambda: (model(x) - 1).square().mean()


def verdicts(*arguments):
    return {name: finding["verdict"] for name, finding in fl.explain(*arguments).to_dict().items()}


def test_without_an_optimizer_membership_is_not_judged():
    model, loss_fn = two_layers()
    assert set(verdicts(model, loss_fn).values()) == {"learns"}


def test_several_optimizers_together_hold_what_learns():
    model, loss_fn = two_layers()
    first, second = (torch.optim.Adam(model[layer].parameters()) for layer in (0, 2))
    assert set(verdicts(model, loss_fn, [first, second]).values()) == {"learns"}
    assert verdicts(model, loss_fn, [second])["0.weight"] == "not in optimizer"
    assert verdicts(model, loss_fn, first)["2.weight"] == "not in optimizer"


def test_a_tensor_in_two_optimizers_is_listed_twice():
    model, loss_fn = two_layers()
    whole, part = torch.optim.Adam(model.parameters()), torch.optim.SGD(model[0].parameters(), lr=0.1)
    found = fl.explain(model, loss_fn, (whole, part)).to_dict()
    assert found["0.weight"]["notes"] == ["listed twice"]
    assert found["2.weight"]["notes"] == []
    assert {finding["verdict"] for finding in found.values()} == {"learns"}


def test_tied_tensors_are_one_with_a_note():
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    ids = torch.tensor([0, 3])
    explanation = fl.explain(model, lambda: model["head"](model["embed"](ids)).square().mean())
    assert explanation.to_dict() == {
        "embed.weight": {
            "verdict": "learns",
            "reason": "",
            "where": None,
            "notes": ["tied"],
            "tied": ["head.weight"],
            "groups": None,
        }
    }
    assert "embed.weight (= head.weight)" in str(explanation)


@pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_a_learning_rate_of_zero_is_named(rate):
    model, loss_fn = two_layers()
    optimizer = torch.optim.Adam([{"params": model[0].parameters(), "lr": rate}, {"params": model[2].parameters()}])
    assert verdicts(model, loss_fn, optimizer) == {
        "0.weight": "learning rate 0",
        "0.bias": "learning rate 0",
        "2.weight": "learns",
        "2.bias": "learns",
    }


def test_an_optimizer_of_another_model_is_told():
    model, loss_fn = two_layers()
    optimizer = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    explanation = fl.explain(model, loss_fn, optimizer)
    assert set(explanation.alarms) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert (
        "The optimizer holds 4 tensors of shape (3, 4), (3,), (1, 3), ..., not in the model. "
        "Make it after the model is copied, changed or planned." in explanation.remarks
    )


def test_layers_in_a_plain_list_are_told():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(4, 4)]
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.layers[0](x))

    model, x = Listed(), torch.randn(8, 4)
    explanation = fl.explain(model, lambda: model(x).mean(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert explanation.alarms == []
    assert explanation.remarks == (
        "The loss also reaches 2 Parameters of shape (4, 4), (4,), not among the model's parameters. "
        "Layers in a plain list need nn.ModuleList, tensors nn.Parameter.",
    )
    assert model.layers[0].weight.grad is None


def test_a_tensor_that_is_no_parameter_is_told_and_an_input_is_not():
    model = nn.Linear(4, 1)
    model.scale = torch.ones(4, requires_grad=True)
    x = torch.randn(8, 4, requires_grad=True)
    assert fl.explain(model, lambda: model(x).sum()).remarks == ()
    (remark,) = fl.explain(model, lambda: model(x * model.scale).sum()).remarks
    assert remark.startswith("The loss also reaches 1 tensor of shape (4,), not among the model's parameters.")
    assert x.grad is None
    assert model.scale.grad is None


def test_an_optimizer_made_before_the_plan_is_told_and_its_step_is_not_the_end():
    model, loss_fn = two_layers()
    optimizer = torch.optim.Adam(model.parameters())
    fl.train_only(model, {"0.weight": fl.rows([0]), "2.*": fl.everything})
    explanation = fl.explain(model, loss_fn, optimizer)
    assert verdicts(model, loss_fn, optimizer)["0.weight"] == "not in optimizer"
    assert any(remark.startswith("The step raised StaleOptimizerError: ") for remark in explanation.remarks)


def test_a_stale_gradient_moves_a_frozen_tensor():
    model, loss_fn = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn().backward()
    model[0].requires_grad_(False)
    found = fl.explain(model, loss_fn, optimizer).to_dict()
    assert found["0.weight"]["verdict"] == "moves without gradient"
    assert found["0.weight"]["notes"] == ["frozen"]
    assert found["2.weight"]["verdict"] == "learns"
    optimizer.zero_grad()
    assert verdicts(model, loss_fn, optimizer)["0.weight"] == "frozen"


def test_a_zero_filled_gradient_lets_decay_move_what_is_unused():
    model = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
    x = torch.randn(8, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    found = fl.explain(model, lambda: model[0](x).mean(), optimizer).to_dict()
    assert (found["1.weight"]["verdict"], found["1.weight"]["notes"]) == ("unused", ["moves without gradient"])
    assert (found["0.weight"]["verdict"], found["0.weight"]["notes"]) == ("learns", [])


def test_a_mask_on_accumulated_gradients_is_part_of_the_step():
    model, loss_fn = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert verdicts(model, loss_fn, optimizer)["0.bias"] == "learns"

    def nothing(parameter):
        parameter.grad.zero_()

    model[0].bias.register_post_accumulate_grad_hook(nothing)
    assert verdicts(model, loss_fn, optimizer) == {
        "0.weight": "learns",
        "0.bias": "zero gradient",
        "2.weight": "learns",
        "2.bias": "learns",
    }


def test_an_optimizer_in_the_backward_pass_is_seen_and_taken_back():
    model, loss_fn = two_layers()
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert set(verdicts(model, loss_fn).values()) == {"learns"}
    assert set(verdicts(model, loss_fn, list(optimizers.values())).values()) == {"learns"}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    loss_fn().backward()
    assert all((a != b).any() for a, b in zip(before, model.parameters(), strict=True))


def test_lbfgs_gets_its_closure():
    model, loss_fn = two_layers()
    assert set(verdicts(model, loss_fn, torch.optim.LBFGS(model.parameters(), max_iter=2)).values()) == {"learns"}


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (nn.Linear(1, 1), "optimizer: Linear has no `param_groups` and `step`. Pass the optimizer(s)."),
        ("adam", "optimizer: str has no `param_groups` and `step`"),
    ],
)
def test_what_is_no_optimizer_is_refused(optimizer, says):
    model, loss_fn = two_layers()
    with pytest.raises(TypeError, match=re.escape(says)):
        fl.explain(model, loss_fn, optimizer)


@pytest.mark.parametrize("look", [fl.explain, fl.trial_step])
def test_a_loss_that_was_called_already_is_refused(look):
    model, loss_fn = two_layers()
    with pytest.raises(TypeError, match=re.escape("loss_fn: Tensor is no function. Pass one that runs the pass")):
        look(model, loss_fn(), torch.optim.SGD(model.parameters(), lr=0.1))


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=re.escape("model: function, but it must be an nn.Module.")):
        fl.explain(two_layers, lambda: torch.ones(()))


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda model: model(torch.ones(2, 4)), "loss_fn: the loss has shape (2, 1), but it must be one number."),
        (lambda model: None, "loss_fn: it returned NoneType, but the loss must be a tensor."),
        (lambda model: True, "loss_fn: it returned bool"),
    ],
)
def test_what_is_no_loss_is_refused(loss, says):
    model, _ = two_layers()
    with pytest.raises(fl.ProbeError, match=re.escape(says)):
        fl.explain(model, lambda: loss(model))


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_nan_inf_zero_and_rounding_are_told_apart():
    scale = nn.ParameterDict(
        {
            "nan": nn.Parameter(torch.zeros(2)),
            "zero": nn.Parameter(torch.ones(2)),
            "rounds": nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
            "learns": nn.Parameter(torch.ones(2)),
        }
    )

    def loss_fn():
        nan = torch.where(scale["nan"] > 0, scale["nan"].sqrt(), 0.0)  # d sqrt(0) = Inf, times 0
        return (nan + scale["zero"] * 0 + scale["rounds"].float() + scale["learns"] ** 2).sum()

    found = fl.explain(scale, loss_fn, torch.optim.AdamW(scale.parameters(), lr=1e-4, weight_decay=0)).to_dict()
    assert {name: finding["verdict"] for name, finding in found.items()} == {
        "nan": "not finite",
        "zero": "zero gradient",
        "rounds": "rounds away",
        "learns": "learns",
    }
    assert found["nan"]["reason"] == "its gradient holds NaN or Inf"
    assert found["rounds"]["reason"] == "the step changes no bit: it is below bfloat16's resolution"


@pytest.mark.parametrize("kind", [None, torch.optim.Adam, torch.optim.AdamW])
def test_behind_a_factor_that_starts_at_zero_a_parameter_learns_and_behind_two_it_is_dead(kind):
    torch.manual_seed(0)
    model = nn.ParameterDict({name: nn.Parameter(torch.randn(3, 3)) for name in ("a", "b", "c", "d")})
    with torch.no_grad():
        for name in ("b", "c", "d"):
            model[name].zero_()
    x = torch.randn(5, 3)

    def loss_fn():
        return (x @ model["a"] @ model["b"] + x @ model["c"] @ model["d"]).sub(1).square().mean()

    optimizer = kind(model.parameters()) if kind else None
    found = fl.explain(model, loss_fn, optimizer).to_dict()
    assert {name: (finding["verdict"], finding["notes"]) for name, finding in found.items()} == {
        "a": ("learns", ["zero gradient"]),
        "b": ("learns", []),
        "c": ("zero gradient", []),
        "d": ("zero gradient", []),
    }
    assert found["a"]["reason"] == "its gradient is zero now, and no longer after a step"
    if optimizer:
        assert not optimizer.state


def test_a_loss_that_is_not_finite_is_told():
    model, x = nn.Linear(4, 3), torch.randn(8, 4)
    labels = torch.full((8,), -100)
    found = fl.explain(model, lambda: F.cross_entropy(model(x), labels)).to_dict()
    assert found["weight"]["verdict"] == "not finite"
    assert found["weight"]["reason"] == "the loss holds NaN or Inf"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_that_learns_is_understood(dtype):
    weight = nn.ParameterList([nn.Parameter(torch.ones(3, dtype=dtype)), nn.Parameter(torch.ones(3, dtype=dtype))])
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.1)
    assert verdicts(weight, lambda: (weight[0] * (1 + 0 * weight[1])).abs().sum(), optimizer) == {
        "0": "learns",
        "1": "zero gradient",
    }


def test_sparse_gradients_are_understood():
    embed = nn.Embedding(5, 2, sparse=True)
    ids = torch.tensor([1, 3])
    assert verdicts(embed, lambda: embed(ids).sum(), torch.optim.SparseAdam(embed.parameters())) == {"weight": "learns"}
    assert verdicts(embed, lambda: embed(ids).sum() * 0, torch.optim.SparseAdam(embed.parameters())) == {
        "weight": "zero gradient"
    }


# --- partial tensors --------------------------------------------------------------------------------------------------


def planned():
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(10, 3), "norm": nn.BatchNorm1d(3), "head": nn.Linear(3, 2)})
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[0] = True
    plan = fl.train_only(model, {"embed.weight": fl.rows([2, 5, 7]), "head.weight": fl.entries(mask)})
    ids = torch.tensor([0, 2, 5, 5])
    return model, lambda: model["head"](model["norm"](model["embed"](ids))).square().mean(), plan


def test_a_partial_tensor_has_a_verdict_for_each_group_of_rows():
    model, loss_fn, plan = planned()
    explanation = fl.explain(model, loss_fn, torch.optim.Adam(plan.parameters()))
    found = explanation.to_dict()
    assert list(found) == ["embed.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert found["embed.weight"]["verdict"] == "learns in part"
    assert found["embed.weight"]["reason"] == "3 of 10 rows, 2 with a gradient now"
    assert found["embed.weight"]["groups"] == {"learns": 2, "zero gradient": 1, "frozen by plan": 7}
    assert found["head.weight"]["groups"] == {"learns": 3, "frozen by plan": 3}
    assert found["head.bias"]["verdict"] == "frozen by plan"
    assert explanation.alarms == []


def test_statistics_that_move_in_a_frozen_module_are_listed():
    model, loss_fn, plan = planned()
    names = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
    explanation = fl.explain(model, loss_fn, torch.optim.Adam(plan.parameters()))
    assert explanation.buffers == names
    assert "Buffers of frozen modules that move all the same: norm.running_mean, " in str(explanation)
    model["norm"].requires_grad_(True)
    assert fl.explain(model, loss_fn).buffers == ()
    model["norm"].requires_grad_(False).eval()
    assert fl.explain(model, loss_fn).buffers == ()


def test_statistics_beside_what_learns_are_not_listed():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), nn.BatchNorm1d(3, affine=False))
    x = torch.randn(8, 4)
    assert fl.explain(model, lambda: model(x).square().sum()).buffers == ()
    model.requires_grad_(False)
    buffers = fl.explain(model, lambda: model(x).square().sum() * torch.ones((), requires_grad=True)).buffers
    assert {"0.parametrizations.weight.0._u", "1.running_mean"} <= set(buffers)


def test_rows_that_are_cut_off_are_cut_and_the_rest_is_frozen_by_plan():
    model, _, plan = planned()
    ids = torch.tensor([2])
    found = fl.explain(
        model, lambda: model["head"](model["embed"](ids).detach()).sum(), torch.optim.Adam(plan.parameters())
    ).to_dict()["embed.weight"]
    assert found["verdict"] == "cut"
    assert found["groups"] == {"cut": 3, "frozen by plan": 7}


@pytest.mark.parametrize("of", ["rows", "entries"])
def test_a_partial_weight_that_is_detached_is_cut_there(of):
    embed = nn.Embedding(6, 2)
    fl.train_only(embed, {"weight": fl.rows([1]) if of == "rows" else fl.entries(torch.rand(6, 2) > 0.5)})
    ids = torch.tensor([0, 1])

    def loss_fn():
        weight = embed.weight.detach()  # <- partial
        return F.embedding(ids, weight).sum() + torch.ones((), requires_grad=True)

    found = fl.explain(embed, loss_fn).to_dict()["weight"]
    assert found["verdict"] == "cut"
    assert found["where"].endswith(f":{line_of('partial')}")


def test_a_frozen_part_that_a_stale_gradient_moves_is_told():
    model, loss_fn, plan = planned()
    frozen = model["embed"]._parameters["weight"]
    optimizer = torch.optim.SGD([*plan.parameters(), frozen], lr=0.1)
    assert verdicts(model, loss_fn, optimizer)["embed.weight"] == "learns in part"
    frozen.grad = torch.ones_like(frozen)
    found = fl.explain(model, loss_fn, optimizer).to_dict()["embed.weight"]
    assert (found["verdict"], found["notes"]) == ("moves without gradient", ["learns in part"])
    assert found["groups"] == {"learns": 2, "zero gradient": 1, "moves without gradient": 7}


def test_what_train_only_froze_is_told_from_what_the_user_froze():
    model, loss_fn = two_layers()
    model[0].requires_grad_(False)
    assert verdicts(model, loss_fn)["0.weight"] == "frozen"
    fl.train_only(model, {"2.*": fl.everything})
    assert verdicts(model, loss_fn)["0.weight"] == "frozen by plan"


def test_a_plan_without_rows_is_frozen_by_plan():
    embed = nn.Embedding(4, 2)
    fl.train_only(embed, {"weight": fl.rows([])})
    weight = nn.Parameter(torch.ones(2))
    assert verdicts(embed, lambda: (embed(torch.tensor([1])) * weight).sum()) == {"weight": "frozen by plan"}


# --- the ways people train --------------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """A block that learns, one that is cut off in the middle, and one after."""

    def __init__(self, wrap=lambda block, x: block(x)):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.cut_off, self.last = (nn.Linear(4, 4) for _ in range(4))
        self.wrap = wrap

    def block(self, x):
        h = torch.tanh(self.inner(x))
        return h + self.cut_off(h).detach()  # <- block

    def forward(self, x):
        return self.last(self.wrap(self.block, self.first(x)))


EXPECTED = {
    f"{layer}.{kind}": "cut" if layer == "cut_off" else "learns"
    for layer in ("first", "inner", "cut_off", "last")
    for kind in ("weight", "bias")
}
WRAPS = {
    "plain": lambda block, x: block(x),
    "checkpoint": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "reentrant checkpoint": lambda block, x: checkpoint(block, x, use_reentrant=True),
    "vmap": lambda block, x: torch.vmap(block)(x),
    "jvp": lambda block, x: torch.func.jvp(block, (x,), (torch.ones_like(x),))[0],
    "linearized": lambda block, x: torch.func.vjp(block, x)[0],
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # forward mode's
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
def test_a_cut_inside_of_it_is_found(wrap):
    model, x = Blocks(wrap), torch.randn(8, 4)
    found = fl.explain(model, lambda: model(x).square().mean(), torch.optim.Adam(model.parameters())).to_dict()
    assert {name: finding["verdict"] for name, finding in found.items()} == EXPECTED
    assert found["cut_off.weight"]["where"].endswith(f"{HERE.name}:{line_of('block')}")


def test_a_reentrant_checkpoint_whose_inputs_need_no_gradient_cuts_what_is_inside():
    model = nn.ModuleDict({"inside": nn.Linear(4, 4), "after": nn.Linear(4, 1)})
    x = torch.randn(8, 4)

    def loss_fn():
        with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
            h = checkpoint(model["inside"], x, use_reentrant=True)  # <- reentrant
        return model["after"](h).mean()

    found = fl.explain(model, loss_fn).to_dict()
    assert found["inside.weight"]["verdict"] == "cut"
    assert found["inside.weight"]["where"].endswith(f":{line_of('reentrant')}")
    assert found["inside.weight"]["reason"].startswith("checkpoint: ")
    assert found["after.weight"]["verdict"] == "learns"


def test_autocast_changes_nothing_in_the_verdicts():
    model, x = Blocks(), torch.randn(8, 4)

    def loss_fn():
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float().square().mean()

    assert verdicts(model, loss_fn, torch.optim.Adam(model.parameters())) == EXPECTED


@pytest.mark.parametrize("inner", [False, True], ids=["whole", "a module inside"])
def test_a_compiled_model_is_explained_in_its_eager_module_and_that_is_said(inner):
    model, x = Blocks(), torch.randn(8, 4)
    names = EXPECTED
    if inner:
        model.first = torch.compile(model.first, backend="eager")
        compiled = model
        names = {name.replace("first.", "first._orig_mod."): verdict for name, verdict in EXPECTED.items()}
    else:
        compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):  # before anything is compiled, and after
        explanation = fl.explain(compiled, lambda: compiled(x).square().mean(), optimizer)
        found = explanation.to_dict()
        assert {name: finding["verdict"] for name, finding in found.items()} == names
        assert found["cut_off.weight"]["where"].endswith(f":{line_of('block')}")
        assert explanation.remarks == ("The model is compiled; its eager module is explained.",)
        compiled(x).square().mean().backward()
        optimizer.zero_grad()


def test_in_a_distributed_data_parallel_the_own_module_is_explained(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, x = Blocks(), torch.randn(8, 4)
        model.cut_off.requires_grad_(False)
        names = {name: "frozen" if verdict == "cut" else verdict for name, verdict in EXPECTED.items()}
        ddp = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        twin = copy.deepcopy(model)
        for _ in range(2):
            assert verdicts(ddp, lambda: ddp(x).square().mean(), optimizer) == names
            ddp(x).square().mean().backward()
            twin(x).square().mean().backward()
            assert all(
                a.grad is None or torch.equal(a.grad, b.grad)
                for a, b in zip(model.parameters(), twin.parameters(), strict=True)
            )
            assert model.first.weight.grad is not None
    finally:
        dist.destroy_process_group()


def test_hooks_are_part_of_the_model():
    model, loss_fn = two_layers()
    model[2].register_forward_pre_hook(lambda module, inputs: inputs[0].detach())  # <- hook
    model[2].weight.register_hook(torch.zeros_like)
    found = fl.explain(model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)).to_dict()
    assert found["0.weight"]["verdict"] == "cut"
    assert found["0.weight"]["where"].endswith(f":{line_of('hook')}")
    assert found["2.weight"]["verdict"] == "zero gradient"
    assert found["2.bias"]["verdict"] == "learns"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_and_packed_sequences(kind):
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": kind(3, 4, bidirectional=True), "head": nn.Linear(8, 1)})
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])

    def loss_fn():
        hidden, _ = nn.utils.rnn.pad_packed_sequence(model["rnn"](packed)[0])
        return model["head"](hidden.detach()).mean()  # <- packed

    found = fl.explain(model, loss_fn).to_dict()
    rnn = [finding for name, finding in found.items() if name.startswith("rnn.")]
    assert {finding["verdict"] for finding in rnn} == {"cut"}
    assert all(finding["where"].endswith(f":{line_of('packed')}") for finding in rnn)
    assert found["head.weight"]["verdict"] == "learns"


def test_a_functional_gradient_of_the_wrong_argument_is_unused_or_cut_never_learns():
    model, x = nn.Linear(4, 1), torch.randn(8, 4)

    def energy(weights, inputs):
        return torch.func.functional_call(model, weights, (inputs,)).sum()

    def loss_fn():
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}  # <- functional
        return torch.func.grad(energy, argnums=1)(weights, x).square().sum() + torch.ones((), requires_grad=True)

    found = fl.explain(model, loss_fn).to_dict()
    assert found["weight"]["verdict"] == "cut"
    assert found["weight"]["where"].endswith(f":{line_of('functional')}")


def test_a_meta_step_through_a_functional_gradient_learns():
    model, x = nn.Linear(4, 1), torch.randn(8, 4)

    def loss_fn():
        weights = dict(model.named_parameters())

        def energy(weights):
            return torch.func.functional_call(model, weights, (x,)).square().mean()

        slopes = torch.func.grad(energy)(weights)
        return energy({name: weight - 0.1 * slopes[name] for name, weight in weights.items()})

    assert set(verdicts(model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)).values()) == {"learns"}


# --- nothing is left --------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """Dropout, batch statistics, a counter, a custom Function, a checkpoint, a partial table."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.cut_off = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.calls = 0

    def forward(self, ids):
        self.calls += 1
        h = self.drop(self.norm(self.embed(ids)))
        h = h + OneOfTwo.apply(h, self.cut_off(h))
        return checkpoint(self.head, h, use_reentrant=False)


def run(probe, steps=6):
    """Losses, weights and the optimizer's state of a run, with `probe` called between and within its steps."""
    torch.manual_seed(0)
    model = Everything()
    plan = fl.train_only(model, {"embed.weight": fl.rows([1, 2, 3]), "[!e]*": fl.everything})
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.05)
    ids, y = torch.randint(4, (8,)), torch.randint(2, (8,))

    def loss_fn():
        return F.cross_entropy(model(ids), y)

    losses = []
    for step in range(steps):
        probe(model, loss_fn, optimizer)
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        loss = loss_fn()
        probe(model, loss_fn, optimizer)
        loss.backward()
        probe(model, loss_fn, optimizer)
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict(), optimizer.state_dict()["state"], model.calls, torch.get_rng_state()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b


def test_a_run_with_explanations_is_the_same_as_one_without():
    said = []

    def probe(model, loss_fn, optimizer):
        said.append(fl.explain(model, loss_fn, optimizer).to_dict()["cut_off.weight"]["verdict"])

    quiet, probed = run(lambda *arguments: None), run(probe)
    assert all(same(a, b) for a, b in zip(quiet, probed, strict=True))
    assert len(set(quiet[0])) == 6
    assert set(said) == {"cut"}


def test_a_run_in_which_explanations_raise_is_the_same_too():
    def probe(model, loss_fn, optimizer):
        def broken():
            loss_fn().backward()
            raise KeyError("broken")

        with pytest.raises(KeyError, match="broken"):
            fl.explain(model, broken, optimizer)

    quiet, probed = run(lambda *arguments: None), run(probe)
    assert all(same(a, b) for a, b in zip(quiet, probed, strict=True))


def test_torch_is_as_it_was_afterwards():
    def state():
        return torch.autograd.Function.__dict__["apply"], nn.Parameter.__dict__["__new__"]

    before = state()
    model, loss_fn = two_layers()
    fl.explain(model, loss_fn)
    with pytest.raises(ZeroDivisionError):
        fl.explain(model, lambda: 1 / 0)
    assert state() == before
    assert all(not parameter._backward_hooks and parameter.grad is None for parameter in model.parameters())


def test_it_works_under_no_grad_and_in_inference_mode():
    model, loss_fn = two_layers()
    with torch.no_grad():
        assert set(verdicts(model, loss_fn).values()) == {"learns"}
    with torch.inference_mode():
        assert set(verdicts(model, loss_fn).values()) == {"learns"}


def test_a_step_under_way_can_still_be_finished():
    model, _ = two_layers()
    features = model[0](torch.ones(2, 4))
    fl.explain(model, lambda: model[2](features.tanh()).sum())
    features.sum().backward()
    assert model[0].weight.grad is not None
    assert model[2].weight.grad is None


# --- what is printed --------------------------------------------------------------------------------------------------


def test_the_table_names_the_worst_first_and_sums_up_the_frozen():
    model, x = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), torch.randn(8, 4)
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    text = str(fl.explain(model, lambda: model[3](model[2](model[0](x)).detach()).sum()))
    lines = text.splitlines()
    assert lines[0] == "2 of 8 tensors do not train as they stand; 2 learn, 4 frozen."
    assert lines[2].split() == ["verdict", "tensor", "why", "where"]
    assert [line.split()[0] for line in lines[4:]] == ["!", "learns", "learns", "frozen"]
    assert "2.weight, 2.bias" in lines[4]
    assert "0.weight, 0.bias and 2 more" in lines[7]
    assert max(map(len, lines)) < 200


def test_alarms_stand_in_the_order_of_their_words():
    model, x = nn.ModuleDict({name: nn.Linear(2, 1, bias=False) for name in "abcd"}), torch.ones(1, 2)

    def loss_fn():
        return (model["a"](x) + model["b"](x) * 0 + model["c"](x).detach() + model["d"](x)).sum()

    optimizer = torch.optim.SGD([model["b"].weight, model["c"].weight, model["d"].weight], lr=0.1)
    explanation = fl.explain(model, loss_fn, optimizer)
    assert explanation.alarms == ["c.weight", "a.weight", "b.weight"]
    assert [line.split("  ")[0] for line in str(explanation).splitlines()[4:]] == [
        "! cut",
        "! not in optimizer",
        "! zero gradient",
        "",
    ]


def test_all_that_stands_under_a_name_is_summed_up_by_it():
    model = nn.ModuleDict({"body": nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))), "head": nn.Linear(2, 1)})
    x = torch.ones(1, 2)
    text = str(fl.explain(model, lambda: model["head"](model["body"](x).detach()).sum()))
    assert "! cut     body.* (6)  " in text
    text = str(fl.explain(model, lambda: model["head"](model["body"][0](model["body"][1](x).detach())).sum()))
    assert "! cut     body.1.weight, body.1.bias  " in text
    assert "! unused  body.2.weight, body.2.bias  " in text


def test_a_model_of_a_thousand_tensors_prints_a_few_lines():
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(500))
    text = str(fl.explain(model, lambda: sum(layer(torch.ones(2)).sum() for layer in model)))
    assert text.splitlines()[0] == "No alarm; 1000 learn, 0 frozen."
    assert len(text.splitlines()) < 10


def test_a_model_without_parameters_says_so():
    assert str(fl.explain(nn.ReLU(), lambda: torch.ones((), requires_grad=True) * 2)).startswith(
        "The model has no parameters."
    )


def test_the_page_escapes_what_it_shows():
    model, x = nn.ModuleDict({"<script>": nn.Linear(2, 1), "b": nn.Linear(2, 1)}), torch.ones(1, 2)
    page = fl.explain(model, lambda: model["b"](x).sum() + model["<script>"](x).detach().sum()).to_html()
    assert "<script>" not in page
    assert "&lt;script&gt;.weight" in page
    assert 'class="alarm"' in page
    assert 'class="learns"' in page
    assert "http" not in page
