"""Row optimizers as torch optimizers: options, state dicts, failed steps, partial tensors, resume after a crash."""

import copy
import inspect
import io
import re
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import frostline as fl

KINDS = {
    "sgd": (fl.optim.RowSGD, {"lr": 0.1}),
    "momentum": (fl.optim.RowSGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "adagrad": (fl.optim.RowAdagrad, {"lr": 0.1, "lr_decay": 0.1}),
    "one sum per row": (fl.optim.RowAdagrad, {"lr": 0.1, "rowwise": True}),
    "adamw": (fl.optim.RowAdamW, {"lr": 0.1, "amsgrad": True}),
    "one count": (fl.optim.RowAdamW, {"lr": 0.1, "step_per_row": False}),
}
EACH = pytest.mark.parametrize(("make", "options"), KINDS.values(), ids=KINDS.keys())
WITH_STATE = pytest.mark.parametrize(("make", "options"), list(KINDS.values())[1:], ids=list(KINDS)[1:])
NAMESAKES = [
    (fl.optim.RowSGD, torch.optim.SGD),
    (fl.optim.RowAdagrad, torch.optim.Adagrad),
    (fl.optim.RowAdamW, torch.optim.AdamW),
]


def model(dtype=torch.float32):
    torch.manual_seed(0)
    embed = nn.Embedding(9, 3, sparse=True, dtype=dtype)
    return nn.Sequential(embed, nn.Linear(3, 2, dtype=dtype))


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        ids = torch.randint(9, (5,), generator=torch.Generator().manual_seed(step))
        net(ids).pow(2).sum().backward()
        optimizer.step()


def everything(net, optimizer):
    """Return copies of all values and all state."""
    values = [parameter.detach().clone() for parameter in net.parameters()]
    return values, copy.deepcopy(optimizer.state_dict()["state"])


def assert_same(a, b):
    for value, other in zip(a[0], b[0], strict=True):
        assert torch.equal(value, other)
    assert a[1].keys() == b[1].keys()
    for key, state in a[1].items():
        assert state.keys() == b[1][key].keys()
        for name, value in state.items():
            assert value.dtype == b[1][key][name].dtype
            assert torch.equal(value, b[1][key][name])


@pytest.mark.parametrize(("ours", "theirs"), NAMESAKES)
def test_arguments_and_defaults_are_those_of_torch_optim_in_the_same_order(ours, theirs):
    mine, namesake = (inspect.signature(make).parameters for make in (ours, theirs))
    shared = [name for name in mine if name in namesake]
    assert set(mine) - set(namesake) <= {"rowwise", "step_per_row"}
    left_out = {"foreach", "differentiable", "fused", "capturable"}
    assert shared == [name for name in namesake if name not in left_out]
    for name in shared:
        assert mine[name].default == namesake[name].default
        assert mine[name].kind == namesake[name].kind


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (fl.optim.RowSGD, {"lr": -0.1}, "lr: -0.1, but it must be 0 or more."),
        (fl.optim.RowSGD, {"lr": float("nan")}, "lr: nan, but it must be 0 or more."),
        (fl.optim.RowSGD, {"lr": torch.ones(2)}, "but it must be a number, or a tensor with one element."),
        (fl.optim.RowSGD, {"momentum": -1}, "momentum: -1, but it must be 0 or more."),
        (fl.optim.RowSGD, {"weight_decay": -1}, "weight_decay: -1, but it must be 0 or more."),
        (fl.optim.RowSGD, {"nesterov": True}, "nesterov: True with momentum 0 and dampening 0, but it must be False"),
        (fl.optim.RowSGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "momentum 0.9 and dampening 0.1"),
        (fl.optim.RowAdagrad, {"lr_decay": -1}, "lr_decay: -1, but it must be 0 or more."),
        (fl.optim.RowAdagrad, {"eps": -1}, "eps: -1, but it must be 0 or more."),
        (fl.optim.RowAdagrad, {"initial_accumulator_value": -1}, "initial_accumulator_value: -1"),
        (fl.optim.RowAdamW, {"betas": (0.9, 1.0)}, "betas: (0.9, 1.0), but it must be two numbers in [0, 1)."),
        (fl.optim.RowAdamW, {"betas": (-0.1, 0.9)}, "betas: (-0.1, 0.9)"),
        (fl.optim.RowAdamW, {"weight_decay": -1}, "weight_decay: -1, but it must be 0 or more."),
    ],
)
def test_an_option_out_of_its_range_is_an_error_also_in_a_group(make, options, says):
    weight, other = (nn.Parameter(torch.ones(2)) for _ in range(2))
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        make([weight], **options)
    assert "\n" not in str(caught.value)
    optimizer = make([weight])
    with pytest.raises(ValueError, match=re.escape(says)):
        optimizer.add_param_group({"params": [other], **options})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [other]})


@EACH
def test_complex_parameters_are_an_error(make, options):
    with pytest.raises(ValueError, match=r"params: a parameter of dtype torch\.complex64, but it must be float16, bfl"):
        make([nn.Parameter(torch.ones(2, dtype=torch.complex64))], **options)


@EACH
def test_parameters_without_a_gradient_keep_their_bits_and_get_no_state(make, options):
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = make([used, unused], **options)
    used.grad = torch.ones(2)
    optimizer.step()
    assert (used != 1).all()
    assert torch.equal(unused.detach(), torch.ones(2))
    assert unused not in optimizer.state
    optimizer.zero_grad()
    assert used.grad is None
    before = everything(nn.ParameterList([used]), optimizer)
    optimizer.step()
    assert_same(everything(nn.ParameterList([used]), optimizer), before)


@EACH
def test_named_parameters_are_accepted_and_their_names_saved(make, options):
    net = model()
    optimizer = make(net.named_parameters(), **options)
    train(net, optimizer, range(1))
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["0.weight", "1.weight", "1.bias"]


@EACH
def test_a_gradient_scaler_skips_the_step_of_an_infinite_gradient_and_unscales_the_others(make, options):
    plain, scaled = model(torch.float64), model(torch.float64)
    optimizer = make(plain.parameters(), **options)
    other = make(scaled.parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, float("inf"), 1.0):
        before = everything(scaled, other)
        for net in (plain, scaled):
            net.zero_grad()
        scaler.scale(scaled(torch.tensor([3, 3, 8])).sum() * factor).backward()
        scaler.step(other)
        scaler.update()
        if factor == 1.0:
            plain(torch.tensor([3, 3, 8])).sum().backward()
            optimizer.step()
        else:
            assert_same(everything(scaled, other), before)
    for value, oracle in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(value, oracle, rtol=1e-12, atol=1e-12)
    assert (scaled[0].weight != model(torch.float64)[0].weight).any(1).nonzero().flatten().tolist() == [3, 8]


@EACH
def test_empty_parameters_are_skipped(make, options):
    empty, other = nn.Parameter(torch.ones(0, 3)), nn.Parameter(torch.ones(2))
    optimizer = make([empty, other], **options)
    empty.grad, other.grad = torch.ones(0, 3), torch.ones(2)
    optimizer.step()
    assert (other != 1).all()


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_training_continues_with_the_same_bits_from_a_saved_state_dict(make, options, dtype):
    net = model(dtype)
    optimizer = make(net.parameters(), **options)
    train(net, optimizer, range(4))
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = model(dtype)
    again = make(resumed.parameters(), lr=0.7)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert_same(everything(resumed, again), everything(net, optimizer))
    before = everything(net, optimizer)
    train(net, optimizer, range(4, 8))
    assert any((value != start).any() for value, start in zip(net.parameters(), before[0], strict=True))
    train(resumed, again, range(4, 8))
    assert_same(everything(resumed, again), everything(net, optimizer))


@WITH_STATE
def test_loaded_state_is_a_copy(make, options):
    net, other = model(), model()
    optimizer, again = make(net.parameters(), **options), make(other.parameters(), **options)
    train(net, optimizer, range(2))
    again.load_state_dict(optimizer.state_dict())
    before = everything(net, optimizer)
    train(other, again, range(2, 4))
    assert_same(everything(net, optimizer), before)


@WITH_STATE
def test_state_that_does_not_match_is_an_error_and_nothing_is_loaded(make, options):
    net = model()
    optimizer = make(net.parameters(), **options)
    train(net, optimizer, range(2))
    before = everything(net, optimizer)

    smaller = copy.deepcopy(optimizer.state_dict())
    name = sorted(smaller["state"][0])[0]
    smaller["state"][0][name] = torch.zeros(7, 7)
    with pytest.raises(
        ValueError, match=rf"state_dict: {name} of parameter 0 has shape \(7, 7\), but the parameter of"
    ):
        optimizer.load_state_dict(smaller)
    smaller["state"][0]["another"] = smaller["state"][0].pop(name)
    with pytest.raises(ValueError, match=rf"state_dict: {name} of parameter 0 has nothing, but"):
        optimizer.load_state_dict(smaller)
    with pytest.raises(ValueError, match=rf"state_dict: has no \w+, so it is not from a {make.__name__}\."):
        optimizer.load_state_dict(torch.optim.Rprop(net.parameters()).state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    assert_same(everything(net, optimizer), before)


@EACH
def test_a_step_that_fails_leaves_values_and_state_as_they_were(make, options):
    net = model()
    optimizer = make([{"params": [parameter]} for parameter in net.parameters()], **options)
    train(net, optimizer, range(2))
    before = everything(net, optimizer)
    table = net[0].weight

    def with_gradient_of_last(grad):
        net[1].bias.grad = grad
        return optimizer.step

    outside = torch.sparse_coo_tensor(torch.tensor([[1, 2]]), torch.ones(2), (2,), check_invariants=False)
    below = torch.sparse_coo_tensor(torch.tensor([[1, -1]]), torch.ones(2), (2,), check_invariants=False)
    table.grad = torch.ones(9, 3)
    for grad, says in ((outside, "grad: names row 2, but the table has 2 rows, 0 to 1."), (below, "names row -1,")):
        with pytest.raises(ValueError, match=re.escape(says)):
            with_gradient_of_last(grad)()
        assert_same(everything(net, optimizer), before)
    net[1].bias.grad = None
    two = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [two]})
    two.grad = torch.eye(2).to_sparse()
    with pytest.raises(ValueError, match=re.escape("must be torch.sparse_coo with sparse_dim 1")):
        optimizer.step()
    assert two not in optimizer.state
    assert_same(everything(net, optimizer), before)
    two.grad = None

    def closure():
        raise ArithmeticError("lost")

    with pytest.raises(ArithmeticError):
        optimizer.step(closure)
    assert_same(everything(net, optimizer), before)
    optimizer.step()
    assert (table != before[0][0]).any()


@EACH
def test_a_partial_tables_learned_rows_move_and_no_other_state_exists(make, options):
    net = model()
    plan = fl.train_only(net, {"0.weight": fl.rows([2, 5, 7])})
    optimizer = make(plan.parameters(), **options)
    start = net[0].weight.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        net(torch.tensor([[5, 1, 5, 2]])).pow(2).sum().backward()
        (learned,) = plan.parameters()
        assert learned.grad.is_sparse
        assert sorted(set(learned.grad._indices()[0].tolist())) == [0, 1], step
        optimizer.step()
    now = net[0].weight.detach().clone()
    assert ((now != start).any(1)).nonzero().flatten().tolist() == [2, 5]
    assert all(len(value) == 3 for value in optimizer.state[learned].values() if value.dim())


@EACH
def test_an_optimizer_made_before_the_plan_is_an_error(make, options):
    net = model()
    optimizer = make(net.parameters(), **options)
    fl.train_only(net, {"0.weight": fl.rows([2, 5, 7])})
    net(torch.tensor([2])).sum().backward()
    with pytest.raises(fl.StaleOptimizerError):
        optimizer.step()


@EACH
def test_gradients_accumulate_over_several_backward_calls(make, options):
    results = []
    for batches in ([[1, 1, 4], [4, 8]], [[1, 1, 4, 4, 8]]):
        net = model(torch.float64)
        optimizer = make(net.parameters(), **options)
        for ids in batches:
            net(torch.tensor(ids)).sum().backward()
        optimizer.step()
        results.append(net[0].weight.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


CRASH = """
    import os, signal, sys
    import torch
    from torch import nn
    import frostline as fl

    path, kind, crash_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
    make, options = {
        "sgd": (fl.optim.RowSGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
        "adagrad": (fl.optim.RowAdagrad, {"lr": 0.1, "lr_decay": 0.1, "rowwise": True}),
        "adamw": (fl.optim.RowAdamW, {"lr": 0.1, "amsgrad": True}),
    }[kind]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Linear(4, 2))
    optimizer = make(net.parameters(), **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    start = 0
    if os.path.exists(path):
        saved = torch.load(path, weights_only=True)
        start = saved["step"]
        for part, state in zip((net, optimizer, schedule), saved["parts"]):
            part.load_state_dict(state)
    for step in range(start, 9):
        ids = torch.randint(50, (12,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(ids).pow(2).sum().backward()
        fl.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 3 == 2:
            parts = [part.state_dict() for part in (net, optimizer, schedule)]
            torch.save({"step": step + 1, "parts": parts}, path + ".new")
            os.replace(path + ".new", path)
"""


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adamw"])
def test_a_run_that_was_killed_and_resumed_ends_with_the_bits_of_one_that_was_not(tmp_path, kind):
    def run(name, crash_at):
        command = [sys.executable, "-c", textwrap.dedent(CRASH), str(tmp_path / name), kind, str(crash_at)]
        return subprocess.run(command, check=False).returncode

    assert run("whole", -1) == 0
    assert run("killed", 4) == -signal.SIGKILL
    at_crash = torch.load(tmp_path / "killed", weights_only=True)
    assert at_crash["step"] == 3
    assert run("killed", -1) == 0
    whole, resumed = (torch.load(tmp_path / name, weights_only=True) for name in ("whole", "killed"))
    for name, value in whole["parts"][0].items():
        assert torch.equal(value, resumed["parts"][0][name])
        assert not torch.equal(value, at_crash["parts"][0][name])
    for key, state in whole["parts"][1]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, resumed["parts"][1]["state"][key][name])
