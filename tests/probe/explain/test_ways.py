"""The ways people train: checkpoints, compiled, distributed, under torch.func."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl

from .cases import line_of, two_layers, verdicts


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


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
def test_a_cut_inside_of_it_is_found(wrap):
    model, x = Blocks(wrap), torch.randn(8, 4)
    found = fl.explain(model, lambda: model(x).square().mean(), torch.optim.Adam(model.parameters())).to_dict()
    assert {name: finding["verdict"] for name, finding in found.items()} == EXPECTED
    assert found["cut_off.weight"]["where"].endswith(f"{Path(__file__).name}:{line_of(__file__, 'block')}")


def test_a_reentrant_checkpoint_whose_inputs_need_no_gradient_cuts_what_is_inside():
    model = nn.ModuleDict({"inside": nn.Linear(4, 4), "after": nn.Linear(4, 1)})
    x = torch.randn(8, 4)

    def loss_fn():
        with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
            h = checkpoint(model["inside"], x, use_reentrant=True)  # <- reentrant
        return model["after"](h).mean()

    found = fl.explain(model, loss_fn).to_dict()
    assert found["inside.weight"]["verdict"] == "cut"
    assert found["inside.weight"]["where"].endswith(f":{line_of(__file__, 'reentrant')}")
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
        assert found["cut_off.weight"]["where"].endswith(f":{line_of(__file__, 'block')}")
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
    assert found["0.weight"]["where"].endswith(f":{line_of(__file__, 'hook')}")
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
    assert all(finding["where"].endswith(f":{line_of(__file__, 'packed')}") for finding in rnn)
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
    assert found["weight"]["where"].endswith(f":{line_of(__file__, 'functional')}")


def test_a_meta_step_through_a_functional_gradient_learns():
    model, x = nn.Linear(4, 1), torch.randn(8, 4)

    def loss_fn():
        weights = dict(model.named_parameters())

        def energy(weights):
            return torch.func.functional_call(model, weights, (x,)).square().mean()

        slopes = torch.func.grad(energy)(weights)
        return energy({name: weight - 0.1 * slopes[name] for name, weight in weights.items()})

    assert set(verdicts(model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)).values()) == {"learns"}
