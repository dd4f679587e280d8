"""A trial step reports what the real step does, and everything is restored, whatever the optimizer."""

import copy
import json
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl

pytestmark = pytest.mark.filterwarnings("ignore:RowAdamW. the gradient of a parameter")  # dense here, on purpose

MATRIX_ONLY = {"muon"}


def sam(parameters):
    return pytest.importorskip("pytorch_optimizer").SAM(parameters, torch.optim.SGD, lr=0.1)


def lookahead(parameters):
    return pytest.importorskip("pytorch_optimizer").Lookahead(torch.optim.SGD(parameters, lr=0.1, momentum=0.9), k=2)


def shampoo(parameters):
    return pytest.importorskip("pytorch_optimizer").ScalableShampoo(parameters, lr=0.1)


def schedule_free(parameters):
    optimizer = pytest.importorskip("schedulefree").AdamWScheduleFree(parameters, lr=0.1)
    optimizer.train()
    return optimizer


def accelerated(parameters):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare_optimizer(torch.optim.AdamW(parameters, lr=0.1))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adamw_tensor_rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), foreach=False),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "muon": lambda p: torch.optim.Muon(p, lr=0.1),
    "row_adamw": lambda p: fl.optim.RowAdamW(p, lr=0.1),
    "row_adagrad": lambda p: fl.optim.RowAdagrad(p, lr=0.1),
    "sam": sam,
    "lookahead": lookahead,
    "shampoo": shampoo,
    "schedule_free": schedule_free,
    "accelerated": accelerated,
}


class Net(nn.Module):
    """Dropout draws random numbers, BatchNorm and the counter write, the table is looked up."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.hidden = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(5, 2)
        self.calls = 0

    def forward(self, ids):
        self.calls += 1
        return self.out(self.drop(torch.tanh(self.norm(self.hidden(self.embed(ids))))))


IDS = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1])


def prepare(kind, steps=0):
    """Model, loss_fn, optimizer, after some steps."""
    torch.manual_seed(0)
    model = Net()
    parameters = [p for p in model.parameters() if p.dim() == 2] if kind in MATRIX_ONLY else list(model.parameters())
    optimizer = OPTIMIZERS[kind](parameters)

    def loss_fn():
        return F.cross_entropy(model(IDS), IDS % 2) + 0.1 * random.random() + 0.1 * float(np.random.rand())

    for _ in range(steps):
        really_step(optimizer, loss_fn)
    return model, loss_fn, optimizer


def really_step(optimizer, loss_fn):
    def closure():
        optimizer.zero_grad()
        loss = loss_fn()
        loss.backward()
        return loss.detach()

    loss = closure()
    if isinstance(optimizer, torch.optim.LBFGS) or type(optimizer).__name__ == "SAM":
        optimizer.step(closure)
    else:
        optimizer.step()
    return loss


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: np.random.default_rng(0), lambda generator: generator.random()),
        (lambda: np.random.RandomState(0), lambda generator: generator.rand()),
        (lambda: random.Random(0), lambda generator: generator.random()),
        (lambda: torch.Generator().manual_seed(0), lambda generator: float(torch.rand((), generator=generator))),
    ],
    ids=["numpy", "numpy, old", "python", "torch"],
)
def test_a_generator_that_an_optimizer_draws_from_is_restored(make, draw):
    class Noisy(torch.optim.SGD):
        def __init__(self, parameters):
            super().__init__(parameters, lr=0.1)
            self.generator = make()

        def step(self, closure=None):
            self.param_groups[0]["lr"] = 1 + draw(self.generator)
            super().step(closure)

    model = nn.Linear(2, 1)
    optimizer = Noisy(model.parameters())
    trial = fl.trial_step(model, lambda: model(torch.ones(1, 2)).sum(), optimizer)
    first = draw(make())
    assert trial["bias"].largest == pytest.approx(1 + first)
    assert draw(optimizer.generator) == first


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_everything_is_as_it_was(kind, steps, everything):
    model, loss_fn, optimizer = prepare(kind, steps)
    before = everything(model, optimizer)
    trial = fl.trial_step(model, loss_fn, optimizer)
    assert everything(model, optimizer) == before
    assert trial["hidden.weight"].entries_moved > 0
    assert trial.buffers == ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_with_trial_steps_is_training_without(kind):
    def losses(look):
        model, loss_fn, optimizer = prepare(kind)
        random.seed(0)
        np.random.seed(0)
        seen = []
        for _ in range(4):
            if look:
                fl.trial_step(model, loss_fn, optimizer)
            seen.append(really_step(optimizer, loss_fn))
        return torch.stack(seen), [parameter.detach().clone() for parameter in model.parameters()]

    (plain, there), (looked, here) = losses(False), losses(True)
    assert torch.equal(plain, looked)
    assert len(plain.unique()) == 4
    assert all(torch.equal(a, b) for a, b in zip(there, here, strict=True))


@pytest.mark.parametrize("kind", sorted(set(OPTIMIZERS) - {"lbfgs", "sam"}))  # a closure draws random numbers again
@pytest.mark.parametrize("steps", [0, 3])
def test_it_reports_what_the_real_step_then_does(kind, steps):
    model, loss_fn, optimizer = prepare(kind, steps)
    optimizer.zero_grad()
    trial = fl.trial_step(model, loss_fn, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert really_step(optimizer, loss_fn).item() == trial.loss
    for name, parameter in model.named_parameters():
        differs = parameter.detach() != before[name]
        distance = (parameter.detach().double() - before[name].double()).abs()
        changes = trial[name]
        assert changes.entries_moved == int(differs.sum())
        assert changes.entries == parameter.numel()
        if changes.entries_moved:
            assert changes.largest == pytest.approx(float(distance.max()), rel=1e-6)
            assert changes.median == pytest.approx(float(distance[differs].median()), rel=1e-6)
        rows = differs.flatten(1).any(1) if differs.dim() > 1 else differs
        assert changes.rows.tolist() == rows.nonzero().flatten().tolist()
        assert changes.row_moved.sum() == changes.entries_moved
        if parameter.dim() > 1:
            assert torch.equal(changes.row_largest, distance.amax(1)[rows])
    assert any(changes.entries_moved for changes in trial.tensors.values())


def test_lbfgs_is_reported_as_it_then_moves():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(8, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
    trial = fl.trial_step(model, lambda: (model(x) - 1).square().mean(), optimizer)
    before = model.weight.detach().clone()
    really_step(optimizer, lambda: (model(x) - 1).square().mean())
    assert trial["weight"].largest == pytest.approx(float((model.weight.detach() - before).abs().max()), rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # theirs, about torch's newer names
def test_a_hundred_third_party_optimizers_are_restored(everything):
    library, tried = pytest.importorskip("pytorch_optimizer"), []
    x = torch.randn(8, 4)
    for name in library.get_supported_optimizers():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

        def loss_fn(model=model):
            return model(x).square().mean()

        try:
            optimizer = library.load_optimizer(name)(model.parameters(), lr=1e-2)
            if "schedulefree" in name:
                optimizer.train()
            really_step(optimizer, loss_fn)
            really_step(optimizer, loss_fn)
        except Exception:
            continue  # it needs more than parameters and a gradient
        before = everything(model, optimizer)
        trial = fl.trial_step(model, loss_fn, optimizer)
        assert everything(model, optimizer) == before, name
        tried.append((name, trial.entries_moved))
    assert len(tried) >= 80
    assert sum(moved > 0 for _, moved in tried) >= 70


def test_gradients_of_earlier_passes_are_added_to_not_zeroed():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(5, 3)

    def loss_fn():
        return model(x).sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    once = fl.trial_step(model, loss_fn, optimizer)
    loss_fn().backward()
    earlier = model.weight.grad
    twice = fl.trial_step(model, loss_fn, optimizer)
    assert twice["weight"].largest == pytest.approx(2 * once["weight"].largest, rel=1e-5)
    assert model.weight.grad is earlier


def test_a_stale_gradient_moves_a_frozen_tensor():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).sum().backward()
    model[0].requires_grad_(False)
    assert fl.trial_step(model, lambda: model(x).sum(), optimizer)["0.weight"].entries_moved == 9
    model[0].weight.grad = None
    assert fl.trial_step(model, lambda: model(x).sum(), optimizer)["0.weight"].entries_moved == 0


class Explodes(torch.optim.SGD):
    """Moves everything, creates state, and then raises."""

    def step(self, closure=None):
        super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["created"] = torch.ones(3)
        self.param_groups[0]["lr"] = 7.0
        self.scratch = [1, 2]
        raise ZeroDivisionError("in the step")


def test_a_step_that_raises_leaves_everything_as_it_was(everything):
    model, loss_fn, _ = prepare("sgd")
    optimizer = Explodes(model.parameters(), lr=0.1, momentum=0.9)
    before = everything(model, optimizer)
    with pytest.raises(ZeroDivisionError, match="in the step"):
        fl.trial_step(model, loss_fn, optimizer)
    assert everything(model, optimizer) == before
    with pytest.raises(ZeroDivisionError):  # outside of a trial step nothing is restored
        really_step(optimizer, loss_fn)
    assert everything(model, optimizer) != before


def test_a_loss_that_raises_leaves_everything_as_it_was(everything):
    model, loss_fn, optimizer = prepare("adam", steps=2)

    def broken():
        loss_fn().backward()
        raise KeyError("in the loss")

    before = everything(model, optimizer)
    with pytest.raises(KeyError, match="in the loss"):
        fl.trial_step(model, broken, optimizer)
    assert everything(model, optimizer) == before


def test_the_backward_of_a_step_in_progress_still_runs():
    model, loss_fn, optimizer = prepare("adam", steps=1)
    optimizer.zero_grad()
    torch.manual_seed(3)
    loss = loss_fn()
    fl.trial_step(model, loss_fn, optimizer)
    loss.backward()
    looked = model.hidden.weight.grad.clone()
    other, other_loss, other_optimizer = prepare("adam", steps=1)
    other_optimizer.zero_grad()
    torch.manual_seed(3)
    other_loss().backward()
    assert torch.equal(other.hidden.weight.grad, looked)
    assert looked.abs().max() > 0


def test_nan_is_compared_by_its_bits():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[float("nan"), 1.0]]))
    unmoved = nn.Parameter(torch.tensor([float("nan"), -0.0]))
    model.register_parameter("unmoved", unmoved)
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    trial = fl.trial_step(model, lambda: model.weight[0, 1] * 2 + 0 * model.unmoved.sum(), optimizer)
    assert trial["unmoved"].entries_moved == 0
    assert trial["weight"].entries_moved == 1
    assert trial["weight"].largest == pytest.approx(0.2)
    poisoned = fl.trial_step(model, lambda: (model.weight * torch.tensor([[1.0, float("inf")]])).sum() * 0, optimizer)
    assert poisoned["weight"].entries_moved == 1
    assert np.isnan(poisoned["weight"].largest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_every_dtype_is_compared(dtype):
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(3, 2, dtype=dtype)), "q": nn.Parameter(torch.ones(2))})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    trial = fl.trial_step(model, lambda: model["w"][1].abs().sum().float() + model["q"].sum(), optimizer)
    assert trial["w"].entries_moved == 2
    assert trial["w"].rows.tolist() == [1]
    assert trial["w"].largest == 0.25


def partial(rows=True):
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "out": nn.Linear(3, 7, bias=False)})
    model["out"].weight = model["embed"].weight  # tied
    mask = torch.zeros(7, 3, dtype=torch.bool)
    mask[[5, 2], 1] = True
    plan = fl.train_only(model, {"embed.weight": fl.rows([5, 2]) if rows else fl.entries(mask)})
    ids = torch.tensor([0, 5, 3, 1])
    return model, lambda: F.cross_entropy(model["out"](model["embed"](ids)), ids), plan


@pytest.mark.parametrize(("rows", "moved"), [(True, 6), (False, 2)])
def test_a_partial_tensor_is_reported_by_the_rows_of_the_whole_tensor(rows, moved, everything):
    model, loss_fn, plan = partial(rows)
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1)
    before = everything(model, optimizer)
    trial = fl.trial_step(model, loss_fn, optimizer)
    assert everything(model, optimizer) == before
    assert list(trial.to_dict()) == ["embed.weight"]
    changes = trial["embed.weight"]
    assert (changes.entries_moved, changes.entries, changes.num_rows) == (moved, 21, 7)
    assert changes.rows.tolist() == [2, 5]
    assert changes.tied == ("out.weight",)
    was = model["embed"].weight.detach().clone()
    really_step(optimizer, loss_fn)
    now = model["embed"].weight.detach().clone()
    assert changes.row_largest.tolist() == pytest.approx((now - was).abs().amax(1)[[2, 5]].tolist(), rel=1e-6)


@pytest.mark.parametrize("rows", [True, False])
def test_a_frozen_part_that_moves_is_seen(rows):
    model, loss_fn, plan = partial(rows)
    frozen = model["embed"]._parameters["weight"]
    frozen.grad = torch.zeros(7, 3)
    frozen.grad[[1, 2]] = 1.0  # where all of row 2 learns, values of the frozen part in row 2 are ignored
    optimizer = torch.optim.SGD([*plan.parameters(), frozen], lr=0.1)
    changes = fl.trial_step(model, loss_fn, optimizer)["embed.weight"]
    assert changes.rows.tolist() == [1, 2, 5]
    assert changes.row_moved.tolist() == [3, 3, 3 if rows else 1]


def test_a_mapped_table_stays_in_its_file(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.randn(50, 4)}, tmp_path / "t.safetensors")
    model = nn.Sequential(fl.mapped_embedding(tmp_path / "t.safetensors", sparse=True), nn.Linear(4, 1))
    plan = fl.train_only(model, {"0.weight": fl.rows([9, 3]), "1.*": fl.everything})
    optimizer = fl.optim.RowAdamW(plan.parameters(), lr=0.1)
    trial = fl.trial_step(model, lambda: model(torch.tensor([9, 1])).sum(), optimizer)
    assert (trial["0.weight"].entries_moved, trial["0.weight"].entries, trial["0.weight"].rows.tolist()) == (
        4,
        200,
        [9],
    )
    assert trial["1.bias"].entries_moved == 1


def test_sparse_gradients_move_the_rows_in_use(everything):
    torch.manual_seed(0)
    model = nn.Embedding(9, 2, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)  # its buffer is sparse
    really_step(optimizer, lambda: model(torch.tensor([1])).sum())
    optimizer.zero_grad()
    before = everything(model, optimizer)
    trial = fl.trial_step(model, lambda: model(torch.tensor([4, 7])).sum(), optimizer)
    assert everything(model, optimizer) == before
    assert trial["weight"].rows.tolist() == [1, 4, 7]


def test_the_users_own_gradient_mask_is_part_of_the_step():
    model, ids = nn.Embedding(5, 2), torch.arange(5)
    model.weight.register_hook(lambda gradient: gradient * (torch.arange(5) < 2)[:, None])
    masked = fl.trial_step(model, lambda: model(ids).sum(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert masked["weight"].rows.tolist() == [0, 1]
    decayed = fl.trial_step(model, lambda: model(ids).sum(), torch.optim.AdamW(model.parameters(), lr=0.1))
    assert decayed["weight"].rows.tolist() == [0, 1, 2, 3, 4]  # a masked gradient is still a gradient


def test_several_optimizers_step_in_order():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), torch.randn(5, 3)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model]
    trial = fl.trial_step(model, lambda: model(x).sum(), optimizers)
    assert all(changes.entries_moved == changes.entries for changes in trial.tensors.values())
    assert fl.trial_step(model, lambda: model(x).sum(), optimizers[:1])["1.weight"].entries_moved == 0


def test_a_scheduler_does_not_count_it_as_a_step():
    model, x = nn.Linear(3, 1), torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    fl.trial_step(model, lambda: model(x).sum(), optimizer)
    with pytest.warns(UserWarning, match=re.escape("`lr_scheduler.step()` before `optimizer.step()`")):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_parameters_that_are_not_in_the_model_are_restored_too(image):
    old = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(old.parameters(), lr=0.1, weight_decay=0.1)
    model, x = copy.deepcopy(old), torch.randn(5, 3)
    old(x).sum().backward()
    before = image(list(old.parameters()))
    trial = fl.trial_step(model, lambda: model(x).sum(), optimizer)
    assert image(list(old.parameters())) == before
    assert trial.entries_moved == 0
    optimizer.step()
    assert image(list(old.parameters())) != before


def test_an_optimizer_made_before_the_plan_raises_as_in_training():
    model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fl.train_only(model, {"0.weight": fl.rows([3]), "1.*": fl.everything})
    with pytest.raises(fl.StaleOptimizerError, match="Make it after train_only"):
        fl.trial_step(model, lambda: model(torch.tensor([3])).sum(), optimizer)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (
            lambda model: model(torch.ones(2, 3)),
            "loss_fn: the loss has shape (2, 1), but it must be one number. Return its mean.",
        ),
        (lambda model: 3.0, "loss_fn: it returned float, but the loss must be a tensor."),
        (
            lambda model: model(torch.ones(2, 3)).sum().detach(),
            "loss_fn: the loss does not depend on anything that learns",
        ),
    ],
)
def test_what_is_not_a_loss_is_named_in_one_line(loss, says):
    model = nn.Linear(3, 1)
    with pytest.raises(fl.ProbeError, match=re.escape(says)) as caught:
        fl.trial_step(model, lambda: loss(model), torch.optim.SGD(model.parameters(), lr=0.1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (0.1, "optimizer: float has no `param_groups` and `step`"),
        ([], "optimizer: an empty list, so nothing would step."),
    ],
)
def test_what_is_not_an_optimizer_is_named_in_one_line(optimizer, says):
    model = nn.Linear(3, 1)
    with pytest.raises(TypeError, match=re.escape(says)):
        fl.trial_step(model, lambda: model(torch.ones(1, 3)).sum(), optimizer)


def test_what_is_not_a_module_is_named_in_one_line():
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match=re.escape("model: expected an nn.Module, got list.")):
        fl.trial_step([weight], lambda: weight.sum(), torch.optim.SGD([weight], lr=0.1))


def test_a_mask_on_accumulated_gradients_is_part_of_the_step(everything):
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), torch.randn(5, 3)

    def only_the_first_row(parameter):
        parameter.grad[1:] = 0

    model[0].weight.register_post_accumulate_grad_hook(only_the_first_row)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = everything(model, optimizer)
    trial = fl.trial_step(model, lambda: model(x).sum(), optimizer)
    assert everything(model, optimizer) == before
    assert trial["0.weight"].rows.tolist() == [0]
    assert trial["0.bias"].entries_moved == 3


@pytest.mark.parametrize("look", [fl.trial_step, lambda model, loss_fn, _: fl.explain(model, loss_fn)])
def test_an_optimizer_that_only_a_hook_refers_to_is_restored(look, everything):
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), torch.randn(5, 3)
    inner, outer = (torch.optim.Adam(layer.parameters(), lr=0.1) for layer in model)

    def step(parameter):
        inner.step()
        parameter.grad = None

    model[0].weight.register_post_accumulate_grad_hook(step)
    before = everything(model, inner), everything(model, outer)
    found = look(model, lambda: model(x).sum(), outer)
    assert (everything(model, inner), everything(model, outer)) == before
    assert found.to_dict()["0.weight"].get("entries_moved", 9) == 9
    model(x).sum().backward()
    assert inner.state


def test_optimizers_that_step_in_the_backward_pass_are_restored(everything):
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), torch.randn(5, 3)
    optimizers = {parameter: torch.optim.Adam([parameter], lr=0.1) for parameter in model.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    before = [everything(model, optimizer) for optimizer in optimizers.values()]
    trial = fl.trial_step(model, lambda: model(x).sum(), list(optimizers.values()))
    assert [everything(model, optimizer) for optimizer in optimizers.values()] == before
    assert all(changes.entries_moved == changes.entries for changes in trial.tensors.values())
    assert trial["0.weight"].largest == pytest.approx(0.1, rel=1e-3)  # one step of Adam, not two


def test_it_prints_a_table_and_plain_values():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(1000, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ids, used = torch.tensor([1, 7]), torch.arange(3)
    trial = fl.trial_step(model, lambda: model[0](ids).sum() + model(used).square().sum(), optimizer)
    table, norm = trial["0.weight"], trial["1.weight"]
    assert [re.split("  +", line) for line in str(trial).splitlines()] == [
        ["tensor", "moved", "rows", "largest", "median"],
        [str(trial).splitlines()[1]],
        [
            "0.weight",
            f"{table.entries_moved} of 4,000",
            f"{len(table.rows)} of 1,000",
            f"{table.largest:.1e}",
            f"{table.median:.1e}",
        ],
        [
            "1.weight",
            f"{norm.entries_moved} of 4",
            f"{norm.entries_moved} of 4",
            f"{norm.largest:.1e}",
            f"{norm.median:.1e}",
        ],
        ["1.bias", "4 of 4", "4 of 4", f"{trial['1.bias'].largest:.1e}", f"{trial['1.bias'].median:.1e}"],
        ["2.weight", "nothing of 4"],
        ["2.bias", "nothing of 1"],
        [str(trial).splitlines()[7]],
        ["total", f"{trial.entries_moved} of 4,013"],
        ["Buffers that the pass changed: 1.running_mean, 1.running_var, 1.num_batches_tracked."],
    ]
    assert table.entries_moved >= 8
    plain = json.loads(json.dumps(trial.to_dict()))
    assert list(plain) == ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert plain["2.bias"] == {
        "entries_moved": 0,
        "entries": 1,
        "largest": 0.0,
        "median": 0.0,
        "rows_moved": 0,
        "num_rows": 1,
        "tied": [],
    }


def test_many_tensors_that_do_not_move_are_one_line():
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(30))
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
    lines = str(fl.trial_step(model, lambda: model[3](torch.ones(1, 2)).sum(), optimizer)).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "tensor",
        lines[1],
        "3.weight",
        "3.bias",
        "(58 more tensors)",
        lines[5],
        "total",
    ]


def test_a_compiled_model_goes_by_its_plain_names():
    plain, x = nn.Sequential(nn.Linear(3, 1)), torch.randn(4, 3)
    model = torch.compile(plain, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x)
    assert fl.trial_step(model, lambda: model(x).sum(), optimizer).to_dict().keys() == {"0.weight", "0.bias"}
