"""Gradients that are faint beside the others are noted, as guesses; healthy ones are not."""

import pytest
import torch
from torch import nn

import frostline as fl

from .cases import line_of


class Faint(nn.Module):
    def __init__(self, cut, left):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.cut, self.left = nn.Linear(4, 4), nn.Linear(4, 1), cut, left

    def forward(self, x):
        h = self.a(x)
        return self.b(self.cut(h)).sum() + self.left * h.sum()


def number(h):
    return torch.tensor(h.tolist())  # <- number


def without_graph(h):
    with torch.no_grad():
        return h * 1  # <- without_graph


CUTS = {
    "detach": lambda h: h.detach(),  # <- detach
    "data": lambda h: h.data,  # <- data
    "without_graph": without_graph,
}


@pytest.mark.parametrize("make", [None, torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("left", [1e-12, 1e-6])
@pytest.mark.parametrize("name", CUTS)
def test_of_one_way_that_is_cut_and_a_fainter_one_alive_the_cut_is_named(name, left, make):
    model, x = Faint(CUTS[name], left), torch.randn(3, 4)
    found = fl.explain(model, lambda: model(x), make and make(model.parameters(), lr=0.1)).to_dict()
    for parameter in ("a.weight", "a.bias"):
        assert "partly cut" in found[parameter]["notes"]
        assert found[parameter]["where"].endswith(f":{line_of(__file__, name)}")
        assert "its largest gradient is" in found[parameter]["reason"]
    assert found["b.weight"]["notes"] == []


def test_a_way_that_is_cut_beside_one_of_the_usual_size_is_not_noted():
    model, x = Faint(lambda h: h.detach(), 1.0), torch.randn(3, 4)
    explanation = fl.explain(model, lambda: model(x), torch.optim.Adam(model.parameters()))
    assert [finding.notes for finding in explanation.findings] == [[]] * 4
    assert explanation.alarms == []


def test_rounding_noise_is_said_to_be_a_guess():
    torch.manual_seed(0)
    router, expert, x = nn.Linear(4, 3), nn.Linear(4, 2), torch.randn(16, 4)
    model = nn.ModuleDict({"router": router, "expert": expert})

    def loss_fn():
        chosen = router(x).softmax(1).topk(1).values
        return (expert(x) * (chosen / chosen.sum(1, keepdim=True))).square().mean()  # the weight is 1 whatever it was

    explanation = fl.explain(model, loss_fn, torch.optim.AdamW(model.parameters(), weight_decay=0))
    found = explanation.to_dict()
    noted = {name for name, finding in found.items() if "noise" in finding["notes"]}
    zero = {name for name, finding in found.items() if finding["verdict"] == "zero gradient"}
    assert noted | zero == {"router.weight", "router.bias"}
    assert noted
    for name in noted:
        assert found[name]["reason"].endswith("rounding noise, as a guess")
        assert found[name]["verdict"] == "learns"


@pytest.mark.parametrize(
    ("make", "scale", "verdict"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01), 1e-12, "moves without gradient"),
        (lambda p: torch.optim.SGD(p, lr=0.1), 1e-12, "rounds away"),
        (lambda p: torch.optim.AdamW(p, lr=0.1), 1e-24, "moves without gradient"),
        (lambda p: torch.optim.AdamW(p, lr=0.1), 1e-9, "learns"),  # Adam divides by the gradient's size
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01), 1.0, "learns"),
    ],
)
def test_a_gradient_that_changes_no_bit_of_the_step_does_not_make_it_learn(make, scale, verdict):
    torch.manual_seed(0)
    model, x = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    found = fl.explain(model, lambda: (model(x) * scale).sum(), make(model.parameters())).to_dict()
    assert found["weight"]["verdict"] == verdict
    if verdict == "moves without gradient":
        assert found["weight"]["reason"].startswith("its gradient is too small to change a bit of the step")


def test_momentum_that_moves_it_alone_is_told_from_a_gradient_that_helps():
    model, x = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert fl.explain(model, lambda: model(x).sum() * 1e-20, optimizer).alarms == ["weight"]
    assert fl.explain(model, lambda: model(x).sum(), optimizer).alarms == []
    before = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    assert all(torch.equal(v, optimizer.state[p][k]) for p in model.parameters() for k, v in before[id(p)].items())
