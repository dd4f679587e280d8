"""With dense gradients every row is used, and the row optimizers do the same as those of torch.optim."""

import copy

import pytest
import torch
from torch import nn

import frostline as fl

INF, NAN = float("inf"), float("nan")

# name: (ours, torch's, options both take)
PAIRS = {
    "sgd": (fl.optim.RowSGD, torch.optim.SGD, {"lr": 0.1}),
    "sgd, decay": (fl.optim.RowSGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.3}),
    "momentum": (fl.optim.RowSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}),
    "nesterov": (fl.optim.RowSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "dampening": (fl.optim.RowSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    "sgd, up": (fl.optim.RowSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "maximize": True}),
    "adagrad": (fl.optim.RowAdagrad, torch.optim.Adagrad, {"lr": 0.1}),
    "adagrad, all": (
        fl.optim.RowAdagrad,
        torch.optim.Adagrad,
        {"lr": 0.1, "lr_decay": 0.5, "weight_decay": 0.3, "initial_accumulator_value": 0.2, "eps": 1e-3},
    ),
    "adagrad, up": (fl.optim.RowAdagrad, torch.optim.Adagrad, {"weight_decay": 0.3, "maximize": True}),
    "adamw": (fl.optim.RowAdamW, torch.optim.AdamW, {}),
    "adamw, all": (
        fl.optim.RowAdamW,
        torch.optim.AdamW,
        {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3, "amsgrad": True},
    ),
    "adamw, short": (fl.optim.RowAdamW, torch.optim.AdamW, {"lr": 0.05, "betas": (0.3, 0.0), "eps": 0}),
    "adamw, up": (fl.optim.RowAdamW, torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.3, "maximize": True}),
}
EACH = pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS.values(), ids=PAIRS.keys())
SHAPES = [(5, 3), (4,), (), (2, 3, 2, 2)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def parameters(dtype=torch.float64):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def run(make, options, dtype, steps=6, change=None):
    """Take steps with the same seeded gradients; return the parameters."""
    learned = parameters(dtype)
    optimizer = make(learned, **options)
    torch.manual_seed(1)
    for step in range(steps):
        for parameter in learned:
            parameter.grad = torch.randn(parameter.shape, dtype=torch.float64).to(dtype)
        if change is not None:
            change(step, learned, optimizer)
        optimizer.step()
    return [parameter.detach() for parameter in learned]


@EACH
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_parameters_of_any_shape_move_as_in_torch(ours, theirs, options, dtype):
    got, expected, start = run(ours, options, dtype), run(theirs, options, dtype), parameters(dtype)
    for value, oracle, before in zip(got, expected, start, strict=True):
        assert (value != before).all()
        torch.testing.assert_close(value, oracle, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once_per_step(ours, theirs, options, dtype):
    options = options | {"lr": 0.2}

    def in_float32(step, learned, optimizer):  # the oracle: torch on float32 copies, rounded after every step
        for parameter in learned:
            parameter.data = parameter.data.to(dtype).float()
            parameter.grad = parameter.grad.to(dtype).float()

    got = run(ours, options, dtype)
    expected = run(theirs, options, torch.float32, change=in_float32)
    start = parameters(torch.float32)
    for value, oracle, before in zip(got, expected, start, strict=True):
        assert value.dtype == dtype
        moved = (oracle - before).abs().max()
        unit = torch.finfo(dtype).eps * 4  # for values up to 4; one rounding may differ
        assert (value.float() - oracle.to(dtype).float()).abs().max() <= 2 * unit < moved


@EACH
def test_nan_and_infinite_gradients_have_the_same_effect_as_in_torch(ours, theirs, options):
    values = torch.tensor([INF, -INF, NAN, 1e30, -1e29, 1e-30, 0.0, 1.0])

    def not_finite(step, learned, optimizer):
        if step == 1:
            learned[0].grad = values[:6].repeat(3)[:15].view(5, 3).to(learned[0].dtype)
        if step == 3:
            learned[0].grad = values.flip(0).repeat(2)[:15].view(5, 3).to(learned[0].dtype)

    got, expected = (run(make, options, torch.float32, change=not_finite) for make in (ours, theirs))
    assert not got[0].isfinite().all()
    for value, oracle in zip(got, expected, strict=True):
        torch.testing.assert_close(value, oracle, rtol=1e-5, atol=1e-6, equal_nan=True)


@EACH
def test_a_learning_rate_schedule_has_the_same_effect_as_in_torch(ours, theirs, options):
    def trained(make):
        learned = parameters()
        optimizer = make(learned, **options)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=6, cycle_momentum=False)
        for step in range(6):
            for parameter in learned:
                parameter.grad = torch.full_like(parameter, float(step) - 2.2)
            optimizer.step()
            schedule.step()
        return learned

    for value, oracle in zip(trained(ours), trained(theirs), strict=True):
        torch.testing.assert_close(value, oracle, rtol=1e-12, atol=1e-12)


@EACH
def test_a_learning_rate_may_be_a_tensor_that_changes(ours, theirs, options):
    def halve(step, learned, optimizer):
        optimizer.param_groups[0]["lr"] /= 2  # in place

    got, expected = (
        run(make, options | {"lr": torch.tensor(0.25, dtype=torch.float64)}, torch.float64, change=halve)
        for make in (ours, theirs)
    )
    for value, oracle in zip(got, expected, strict=True):
        torch.testing.assert_close(value, oracle, rtol=1e-12, atol=1e-12)


@EACH
def test_groups_have_their_own_options(ours, theirs, options):
    def trained(make):
        learned = parameters()
        optimizer = make([{"params": learned[:2], "lr": 0.5}], **options)
        optimizer.add_param_group({"params": learned[2:], "weight_decay": 0.7})
        for step in range(3):
            for parameter in learned:
                parameter.grad = torch.full_like(parameter, float(step) - 0.7)
            optimizer.step()
        return learned

    for value, oracle in zip(trained(ours), trained(theirs), strict=True):
        torch.testing.assert_close(value, oracle, rtol=1e-12, atol=1e-12)


@EACH
def test_a_closure_is_called_with_gradients_on_and_its_loss_is_returned(ours, theirs, options):
    def trained(make):
        learned = parameters()
        optimizer = make(learned, **options)

        def closure():
            optimizer.zero_grad()
            loss = sum(parameter.pow(2).sum() for parameter in learned)
            loss.backward()
            return loss

        return [optimizer.step(closure).item() for _ in range(3)], learned

    (losses, values), (their_losses, oracles) = trained(ours), trained(theirs)
    assert losses == pytest.approx(their_losses, rel=1e-12)
    for value, oracle in zip(values, oracles, strict=True):
        torch.testing.assert_close(value, oracle, rtol=1e-12, atol=1e-12)


@EACH
def test_one_step_of_a_view_that_is_not_contiguous_is_that_of_a_contiguous_one(ours, theirs, options):
    results = []
    for make in (ours, theirs):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(4, 6, dtype=torch.float64).t())
        optimizer = make([weight], **options)
        for _ in range(3):
            weight.grad = torch.randn(6, 4, dtype=torch.float64)
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@EACH
def test_a_gradient_is_never_written_to(ours, theirs, options):
    learned = parameters()
    optimizer = ours(learned, **options)
    for _ in range(2):
        for parameter in learned:
            parameter.grad = torch.full_like(parameter, 0.3)
        optimizer.step()
        assert all(torch.equal(parameter.grad, torch.full_like(parameter, 0.3)) for parameter in learned)


def test_one_sum_per_row_is_the_mean_of_the_squares():
    torch.manual_seed(0)
    for width in (1, 2, 3, 7, 64):
        weight = nn.Parameter(torch.zeros(4, width, dtype=torch.float64))
        optimizer = fl.optim.RowAdagrad([weight], lr=0.1, rowwise=True)
        total, expected = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, width, dtype=torch.float64)
        for _ in range(3):
            weight.grad = torch.randn(4, width, dtype=torch.float64)
            total += weight.grad.pow(2).mean(dim=1, keepdim=True)
            expected -= 0.1 * weight.grad / (total.sqrt() + 1e-10)
            optimizer.step()
        assert optimizer.state[weight]["sum"].shape == (4,)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rowwise", [False, True])
def test_one_sum_per_row_works_for_every_shape(rowwise):
    for shape in SHAPES:
        weight = nn.Parameter(torch.ones(shape))
        weight.grad = torch.full(shape, 2.0)
        fl.optim.RowAdagrad([weight], lr=0.5, rowwise=rowwise).step()
        assert torch.equal(weight.detach(), torch.full(shape, 0.5))


@EACH
def test_a_copy_of_an_optimizer_continues_with_the_same_bits(ours, theirs, options):
    learned = parameters()
    optimizer = ours(learned, **options)
    for parameter in learned:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = copy.deepcopy(learned)
    twin = copy.deepcopy(optimizer)
    copies = twin.param_groups[0]["params"]
    for parameter in copies:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(value, start) for value, start in zip(copies, before, strict=True))
    twin.step()
    for value, copied, start in zip(learned, copies, before, strict=True):
        assert torch.equal(value, copied)
        assert (value != start).all()
