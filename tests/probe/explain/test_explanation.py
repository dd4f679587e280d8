"""What is printed."""

import pytest
import torch
from torch import nn

import frostline as fl


def test_what_is_wrong_comes_first_with_what_to_type_and_its_page():
    model, x = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), torch.randn(8, 4)
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    text = str(fl.explain(model, lambda: model[3](model[2](model[0](x)).detach()).sum()))
    lines = text.splitlines()
    assert lines[0] == "2 of 8 tensors do not train as they stand; 2 learn, 4 frozen."
    assert lines[2] == "! cut: 2.weight, 2.bias"
    assert [line[:9] for line in lines[3:7]] == ["  why    ", "  where  ", "  fix    ", "  page   "]
    assert lines[5].startswith("  fix    leave `.detach()` out of that line; ")
    assert lines[6] == "  page   docs/verdicts/cut.md"
    assert lines[8].split() == ["verdict", "tensor", "why", "where"]
    assert [line.split()[0] for line in lines[10:]] == ["learns", "learns", "frozen"]
    assert "0-1.* (4 tensors)" in lines[12]
    assert max(map(len, lines)) < 200


def test_alarms_are_in_the_order_of_their_verdicts():
    model, x = nn.ModuleDict({name: nn.Linear(2, 1, bias=False) for name in "abcd"}), torch.ones(1, 2)

    def loss_fn():
        return (model["a"](x) + model["b"](x) * 0 + model["c"](x).detach() + model["d"](x)).sum()

    optimizer = torch.optim.SGD([model["b"].weight, model["c"].weight, model["d"].weight], lr=0.1)
    explanation = fl.explain(model, loss_fn, optimizer)
    assert explanation.alarms == ["c.weight", "a.weight", "b.weight"]
    assert [line for line in str(explanation).splitlines() if line.startswith("!")] == [
        "! cut: c.weight",
        "! not in optimizer: a.weight",
        "! zero gradient: b.weight",
    ]


def test_what_to_type_is_said_once_for_all_alarms_of_a_kind():
    model, x = nn.ModuleList(nn.Linear(2, 1) for _ in range(4)), torch.ones(1, 2)

    def loss_fn():
        first = model[0](x).detach()
        second = model[1](x).detach()
        third = model[2](x).item()
        return (first + second + third + model[3](x)).sum()

    text = str(fl.explain(model, loss_fn))
    assert text.count("! cut: ") == text.count("  where  ") == 3
    assert [text.count(f"leave `.{call}()` out of that line") for call in ("detach", "item")] == [1, 1]


def test_all_parameters_under_one_name_are_summed_up_by_it():
    model = nn.ModuleDict({"body": nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))), "head": nn.Linear(2, 1)})
    x = torch.ones(1, 2)
    text = str(fl.explain(model, lambda: model["head"](model["body"](x).detach()).sum()))
    assert "! cut: body.* (6 tensors)\n" in text
    text = str(fl.explain(model, lambda: model["head"](model["body"][0](model["body"][1](x).detach())).sum()))
    assert "! cut: body.1.weight, body.1.bias\n" in text
    assert "! unused: body.2.weight, body.2.bias\n" in text


def test_a_model_of_a_thousand_tensors_prints_a_few_lines():
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(500))
    explanation = fl.explain(model, lambda: sum(layer(torch.ones(2)).sum() for layer in model))
    lines = str(explanation).splitlines()
    assert lines[0] == "No alarm; 1000 learn, 0 frozen."
    assert lines[4].split("  ")[1:3] == ["learns", "0-499.* (1000 tensors)"]
    assert len(lines) < 10
    assert len(explanation.to_dict()) == 1000


def test_a_long_model_is_grouped_by_block():
    def layer():
        attn = nn.ModuleDict({"q": nn.Linear(2, 2, bias=False), "k": nn.Linear(2, 2)})
        return nn.ModuleDict({"attn": attn, "norm": nn.LayerNorm(2)})

    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "layers": nn.ModuleList(layer() for _ in range(32))})

    def loss_fn():
        h = model["embed"](torch.tensor([0, 1, 2, 2]))
        passed = (each["norm"](each["attn"]["q"](h) + each["attn"]["k"](h)) for each in model["layers"])
        return sum((out - 1).square().mean() for out in passed)

    text = str(fl.explain(model, loss_fn))
    names = [line.split("  ")[2] for line in text.splitlines() if line.startswith("  learns")]
    assert names == [
        "embed.weight",
        "layers.0-31.attn.q.weight (32 tensors)",
        "layers.0-31.attn.k.* (64 tensors)",
        "layers.0-31.norm.* (64 tensors)",
    ]


@pytest.mark.parametrize("where", ["forward", "step"])
def test_a_block_that_raised_proves_nothing_and_the_first_line_says_so(where):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))

    def step():
        if where == "step":
            model(torch.ones(1, 2)).sum().backward()
        raise ValueError("no data")

    seen = fl.watching(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="no data"), seen:
        step()
    lines = str(seen.explanation).splitlines()
    assert lines[0] == "The block raised ValueError: no data"
    with pytest.raises(fl.ProbeError, match="The block raised ValueError: no data"):
        seen.check()
    if where == "forward":
        assert lines[1:] == ["So nothing is known of what learns."]
    else:
        assert lines[1] == "So nothing is proven to learn. No alarm; 4 got a gradient, 0 frozen."
        assert seen.explanation.to_dict()["0.weight"]["notes"] == ["step raised"]
        assert "it got a gradient, but no step ended" in lines[5]


def test_a_model_without_parameters_says_so():
    assert str(fl.explain(nn.ReLU(), lambda: torch.ones((), requires_grad=True) * 2)).startswith(
        "The model has no parameters."
    )
