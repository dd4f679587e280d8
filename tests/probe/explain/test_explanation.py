"""What is printed."""

import torch
from torch import nn

import frostline as fl


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


def test_alarms_are_in_the_order_of_their_verdicts():
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


def test_all_parameters_under_one_name_are_summed_up_by_it():
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
