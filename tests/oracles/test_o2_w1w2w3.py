"""w1 is trained towards the product w2 * w3, which is constant: TensorFlow's run against three ways to write it.

loss = mean((x @ w1 - x @ (w2 * w3))^2), with w1, w2, w3 of shape (5, 1). `stop` puts a stop_gradient on the product,
`varlist` gives the optimizer w1 alone, `plain` does neither: all three move. All of it float32; every weight below is
compared after 1, 30 and 60 steps. TensorFlow's Adam adds its epsilon before the bias correction ("epsilon hat").
"""

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHARED = Path(os.environ.get("FROSTLINE_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "oracles"
DATA = dict(np.load(Path(__file__).parent / "data" / "o2_w1w2w3.npz"))
X = torch.tensor(DATA["x"])  # (60, 16, 5)
KINDS = ["stop", "varlist", "plain", "stop_adam", "plain_adam"]


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Parameter(torch.tensor(DATA[f"w{i}_init"])) for i in (1, 2, 3))

    def forward(self, x, gate=lambda product: product):
        return (x @ self.w1 - x @ gate(self.w2 * self.w3)).pow(2).mean()


def train(kind):
    """Sixty steps; return the weights after steps 1, 30 and 60, the losses, and the first two gradients of w1."""
    model = Product()
    parameters = list(model.parameters())
    if kind.startswith("varlist"):
        parameters = fl.train_only(model, {"w1": fl.everything}).parameters()
    adam = kind.endswith("adam")
    optimizer = torch.optim.Adam(parameters, lr=0.1) if adam else torch.optim.SGD(parameters, lr=0.1)
    gate = fl.stop_gradient if kind.startswith("stop") else lambda product: product
    weights, losses, gradients = {"w1": [], "w2": [], "w3": []}, [], []
    for step, x in enumerate(X, start=1):
        optimizer.param_groups[0]["eps"] = 1e-8 / (1 - 0.999**step) ** 0.5
        loss = model(x, gate)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gradients.append(model.w1.grad.clone())
        if step in (1, 30, 60):
            for name, at in weights.items():
                at.append(getattr(model, name).detach().clone())
    return {name: torch.stack(at) for name, at in weights.items()}, torch.tensor(losses), torch.stack(gradients[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_losses_and_gradients_are_those_of_the_reference(kind):
    weights, losses, gradients = train(kind)
    losses_tolerance = 2e-5 if kind.endswith("adam") else 2e-6
    torch.testing.assert_close(losses, torch.tensor(DATA[f"{kind}_loss"]), rtol=0, atol=losses_tolerance)
    torch.testing.assert_close(gradients, torch.tensor(DATA[f"{kind}_grad_w1"]), rtol=0, atol=2e-6)
    for name, values in weights.items():
        torch.testing.assert_close(values, torch.tensor(DATA[f"{kind}_{name}"]), rtol=0, atol=losses_tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_w2_and_w3_keep_every_bit_unless_nothing_stops_them(kind):
    weights, _, _ = train(kind)
    assert (weights["w1"][-1] != torch.tensor(DATA["w1_init"])).all()
    for name in ("w2", "w3"):
        start = torch.tensor(DATA[f"{name}_init"])
        if kind.startswith("plain"):
            assert (weights[name][-1] != start).all()
        else:
            assert torch.equal(weights[name], start.expand(3, 5, 1))


def test_naming_what_learns_and_stopping_the_rest_are_the_same_run():
    named, stopped = train("varlist"), train("stop")
    assert torch.equal(named[0]["w1"], stopped[0]["w1"])
    assert torch.equal(named[1], stopped[1])


@pytest.fixture(scope="module")
def example():
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "only_some_variables.py")))


def run_of_the_example(example, kind, reference, folder):
    """The example's own training on the reference's weights and batches."""
    learns = {"w1": fl.everything} if kind == "varlist" else {"*": fl.everything}
    columns = [torch.tensor(reference[f"w{i}_init"]) for i in (1, 2, 3)]
    return example.train(columns, torch.tensor(reference["x"]), learns, folder, stop=kind == "stop")


@pytest.mark.parametrize("kind", ["stop", "varlist", "plain"])
def test_the_record_of_the_example_is_the_reference(example, kind, tmp_path):
    record = run_of_the_example(example, kind, DATA, tmp_path)
    assert record["w1"].steps == list(range(61))
    torch.testing.assert_close(record["loss"].values.float(), torch.tensor(DATA[f"{kind}_loss"]), rtol=0, atol=2e-6)
    for name in ("w1", "w2", "w3"):
        at = record[name].values[[1, 30, 60]]
        torch.testing.assert_close(at, torch.tensor(DATA[f"{kind}_{name}"]), rtol=0, atol=2e-6)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared reference files are missing: {SHARED}")
@pytest.mark.parametrize("kind", ["stop", "varlist", "plain"])
def test_the_record_of_the_example_is_the_whole_way_of_the_reference(example, kind, tmp_path):
    whole = dict(np.load(SHARED / "o2_w1w2w3.npz"))
    record = run_of_the_example(example, kind, whole, tmp_path)
    for name in ("w1", "w2", "w3"):
        way = torch.tensor(whole[f"{kind}_{name}"])
        assert way.shape == (201, 5, 1)
        torch.testing.assert_close(record[name].values, way, rtol=0, atol=2e-6)
    product = record["w2 * w3"].values
    assert (
        (record["w1"].values[-1] - product[-1]).abs().max() < 1e-5 < (record["w1"].values[0] - product[0]).abs().max()
    )
