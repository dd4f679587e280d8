"""Four old ways to let only some rows of a table learn, run by TensorFlow, against frostline and against plain torch.

Letters used for shapes in this file:
    V  rows of the table (10)     D  width of a row (5)

The recipes of the reference:
    a    mask * E + stop_gradient((1 - mask) * E)          here fl.stop_gradient(E, where=frozen)
    b    the gradient times the mask, dense
    bs   the gradient times the mask, on the values of a sparse gradient
    c    a constant and a variable, concatenated; when the mask changes they are made anew, and so is the optimizer
         (c_fresh), or it keeps its slots for the rows that go on, and its powers of beta (c_carry)
and ours:
    fl   fl.train_only(..., fl.rows(ids)), torch's own optimizer over plan.parameters(), made anew with a new mask
    flc  the same, the optimizer taken along by plan.carry

TensorFlow rounds hyper-parameters to float32, also for float64 tables, and so do we here. (It does not round what
its graph makes in float64: Adagrad's first accumulator and the decay.)
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl

# torch's own sparse Adagrad leaves its checks to their default.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

DATA = dict(np.load(Path(__file__).parent / "data" / "o1_entry_stop_gradients.npz"))
STEPS, FLIP, DECAY = 10, 5, 0.01
MASKS = [torch.tensor(DATA[name] != 0) for name in ("mask", "mask2")]
OPTIMIZERS = ["sgd", "momentum", "adam", "adagrad", "rmsprop"]
LOSSES = ["full", "lookup"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def reference(kind, run, dtype=torch.float64):
    """A reference table (or two, or the losses) by the name of its run."""
    names = DATA[kind.split("_")[0] + "_names"].tolist()
    width = {torch.float64: "f64", torch.float32: "f32"}[dtype]
    return torch.tensor(DATA[kind.replace("_", f"_{width}_", 1)][names.index(run)])


def rounded(value):
    return float(np.float32(value))


class LikeTensorFlow:
    """torch's optimizer, set so that it takes TensorFlow's steps.

    Adam: TensorFlow's epsilon is "epsilon hat", added before the bias correction, and its powers of beta are float32;
    so lr and eps are set anew at each step. RMSProp: the running square starts at 1, and epsilon (1e-10) stands under
    the root; half of it beside the root is the same near 1. Adagrad: no epsilon.
    """

    def __init__(self, name, parameters, decay=0.0, l2=0.0):
        self.name, self.decay, self.powers = name, decay, [np.float32(0.9), np.float32(0.999)]
        lr, parameters = rounded(0.1), list(parameters)
        if name in ("sgd", "momentum"):
            momentum = rounded(0.9) if name == "momentum" else 0.0
            self.torch = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=l2)
        elif name == "adam":
            betas = (rounded(0.9), rounded(0.999))
            kind = torch.optim.AdamW if decay else torch.optim.Adam
            self.torch = kind(parameters, betas=betas, weight_decay=l2)
        elif name == "adagrad":
            self.torch = torch.optim.Adagrad(parameters, lr=lr, initial_accumulator_value=0.1, eps=0.0)
        else:
            self.torch = torch.optim.RMSprop(parameters, lr=rounded(0.01), alpha=rounded(0.9), eps=0.5e-10)
            for p in parameters:
                self.torch.state[p] = {"step": torch.tensor(0.0), "square_avg": torch.ones_like(p)}
        self.parameters, self.steps = parameters, 0

    def carry(self, plan):
        plan.carry(self.torch)
        self.parameters = plan.parameters()
        if self.name == "rmsprop":  # torch's running square begins at 0: so it does in the rows that join
            for state in self.torch.state.values():
                state["square_avg"][state["square_avg"] == 0] = 1

    def step(self):
        self.steps += 1
        if self.name == "adam":
            (group,) = self.torch.param_groups
            ours = [1 - beta**self.steps for beta in group["betas"]]
            theirs = [1 - float(power) for power in self.powers]
            lr = rounded(0.01) * math.sqrt(theirs[1]) / theirs[0]
            group["lr"] = lr * ours[0] / math.sqrt(ours[1])
            group["eps"] = rounded(1e-8) / math.sqrt(ours[1])
            if self.decay:
                group["weight_decay"] = self.decay / group["lr"]  # theirs is not multiplied by lr
            self.powers = [power * np.float32(beta) for power, beta in zip(self.powers, (0.9, 0.999), strict=True)]
        elif self.decay:
            with torch.no_grad():
                for p in self.parameters:
                    p.mul_(1 - self.decay)
        self.torch.step()


def inputs(dtype):
    return {name: torch.tensor(DATA[name], dtype=dtype) for name in ("parm", "t_full", "w", "t_lookup")}


def loss_of(loss, step, embedding, dtype, gate=lambda weight: weight):
    """The reference's loss; `embedding` is an nn.Embedding, partly frozen or not."""
    given = inputs(dtype)
    if loss == "full":
        out = F.linear(given["parm"].T, gate(embedding.weight)).T  # (V, 1)
        return (out.tanh() - given["t_full"]).pow(2).mean()
    found = F.embedding(torch.tensor(DATA["ids"][step]), gate(embedding.weight), sparse=embedding.sparse)
    return ((found @ given["w"]).tanh() - given["t_lookup"][step]).pow(2).mean()


def table(dtype, sparse=False):
    return nn.Embedding(10, 5, sparse=sparse, _weight=torch.tensor(DATA["E0"], dtype=dtype))


def run(recipe, loss, name, dtype=torch.float64, flip=False, sparse=False, before_step=lambda ps: None, **more):
    """Train for ten steps; return the table after each, the one before first, and the losses."""
    embedding = table(dtype, sparse)
    optimizer, losses, tables = None, [], [embedding.weight.detach().clone()]
    for step in range(STEPS):
        mask = MASKS[1] if flip and step >= FLIP else MASKS[0]
        if recipe in ("fl", "flc") and (step == 0 or (flip and step == FLIP)):
            plan = fl.train_only(embedding, {"weight": fl.rows(mask)})
            if recipe == "flc" and step:
                optimizer.carry(plan)
            else:
                optimizer = LikeTensorFlow(name, plan.parameters(), **more)
        elif optimizer is None:
            optimizer = LikeTensorFlow(name, embedding.parameters(), **more)
        frozen = ~mask[:, None]
        gate = (lambda weight, frozen=frozen: fl.stop_gradient(weight, frozen)) if recipe == "a" else lambda w: w
        value = loss_of(loss, step, embedding, dtype, gate)
        losses.append(value.item())
        embedding.zero_grad()
        value.backward()
        if recipe == "b":
            embedding.weight.grad *= mask[:, None]
        elif recipe == "bs":
            gradient = embedding.weight.grad
            values = gradient._values() * mask[gradient._indices()[0], None]
            embedding.weight.grad = torch.sparse_coo_tensor(
                gradient._indices(), values, gradient.shape, check_invariants=False
            )
        before_step(optimizer.parameters)
        optimizer.step()
        tables.append(embedding.weight.detach().clone())
    return torch.stack(tables), torch.tensor(losses, dtype=dtype)


def assert_same(actual, expected, dtype=torch.float64):
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[dtype])


def assert_only_these_rows_moved(tables, mask):
    assert torch.equal(tables[-1][~mask], tables[0][~mask])
    assert (tables[-1][mask] != tables[0][mask]).all()


@every_optimizer
@every_loss
@pytest.mark.parametrize("recipe", ["fl", "a", "b"])
def test_the_learned_rows_follow_the_masked_recipe_and_the_frozen_ones_keep_every_bit(recipe, loss, name):
    """Under a fixed mask all recipes agree on a dense gradient, and `fl` takes the steps of `a` on its rows."""
    tables, losses = run(recipe, loss, name)
    variant = "a" if recipe == "fl" else recipe
    assert_same(losses, reference("fix_loss", f"{loss}_{name}_{variant}"))
    assert_same(tables[[5, 10]], reference("fix_E", f"{loss}_{name}_{variant}"))
    assert_only_these_rows_moved(tables, MASKS[0])


@every_optimizer
@every_loss
def test_in_float32_the_learned_rows_follow_too(loss, name):
    tables, losses = run("fl", loss, name, torch.float32)
    assert_same(losses, reference("fix_loss", f"{loss}_{name}_a", torch.float32), torch.float32)
    assert_same(tables[-1], reference("fix_E", f"{loss}_{name}_a", torch.float32), torch.float32)
    assert_only_these_rows_moved(tables, MASKS[0])


@every_optimizer
def test_on_the_whole_table_the_concatenation_of_a_constant_and_a_variable_is_ours(name):
    tables, losses = run("fl", "full", name)
    assert_same(losses, reference("fix_loss", f"full_{name}_c"))
    assert_same(tables[[5, 10]], reference("fix_E", f"full_{name}_c"))


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
@pytest.mark.parametrize(("recipe", "variant"), [("fl", "c"), ("bs", "bs")])
def test_with_sparse_gradients_the_sparse_recipes_are_ours(recipe, variant, name):
    """torch's SGD and Adagrad take sparse gradients as TensorFlow's do: only rows that were looked up move."""
    tables, losses = run(recipe, "lookup", name, sparse=True)
    assert_same(losses, reference("fix_loss", f"lookup_{name}_{variant}"))
    assert_same(tables[[5, 10]], reference("fix_E", f"lookup_{name}_{variant}"))
    assert_only_these_rows_moved(tables, MASKS[0])


@pytest.mark.parametrize(
    ("name", "gap"), [("sgd", 0.0), ("adam", 0.0), ("adagrad", 0.0), ("momentum", 5.1e-2), ("rmsprop", 5.8e-4)]
)
def test_on_lookups_dense_and_sparse_gradients_differ_under_momentum_and_rmsprop(name, gap):
    """A dense gradient is 0 for a row that was not looked up, and its momentum or running square decays; TensorFlow's
    sparse `c` leaves that row's state alone. Ours is dense unless the embedding is `sparse=True`."""
    tables, _ = run("fl", "lookup", name)
    found = (tables[[5, 10]] - reference("fix_E", f"lookup_{name}_c")).abs().max().item()
    assert found == pytest.approx(gap, rel=0.02, abs=1e-12)


def test_the_sparse_momentum_of_torch_is_not_the_sparse_momentum_of_tensorflow():
    """torch keeps one sparse buffer that decays as a whole, so rows that were not looked up move: its sparse run is its
    dense run."""
    sparse, _ = run("bs", "lookup", "momentum", sparse=True)
    dense, _ = run("b", "lookup", "momentum")
    assert_same(sparse, dense)
    gap = (sparse[[5, 10]] - reference("fix_E", "lookup_momentum_bs")).abs().max().item()
    assert gap == pytest.approx(5.1e-2, rel=0.02)


@every_optimizer
@every_loss
def test_after_a_new_plan_the_newly_frozen_rows_do_not_move(loss, name):
    """Rows 0 and 6 learn for five steps and are then frozen, by a new plan and a new optimizer, as in `c_fresh`."""
    tables, _ = run("fl", loss, name, flip=True)
    newly_frozen, newly_learning = MASKS[0] & ~MASKS[1], MASKS[1] & ~MASKS[0]
    assert torch.equal(tables[-1][newly_frozen], tables[FLIP][newly_frozen])
    assert (tables[FLIP][newly_frozen] != tables[0][newly_frozen]).all()
    assert torch.equal(tables[FLIP][newly_learning], tables[0][newly_learning])
    if loss == "full" or name in ("sgd", "adam", "adagrad"):  # elsewhere dense and sparse gradients part, see above
        assert_same(tables[-1], reference("flip_E", f"{loss}_{name}_c_fresh"))


@every_optimizer
@every_loss
def test_a_carried_optimizer_keeps_the_state_of_rows_that_still_learn(loss, name):
    """As `c_carry`: rows 2, 3, 7 and 9 keep their momentum, 1 and 8 are new and have none, 0 and 6 do not move."""
    tables, _ = run("flc", loss, name, flip=True)
    newly_frozen, newly_learning = MASKS[0] & ~MASKS[1], MASKS[1] & ~MASKS[0]
    assert torch.equal(tables[-1][newly_frozen], tables[FLIP][newly_frozen])
    assert torch.equal(tables[FLIP][newly_learning], tables[0][newly_learning])
    assert (tables[-1][newly_learning] != tables[0][newly_learning]).all()
    if loss == "full" or name in ("sgd", "adam", "adagrad"):  # elsewhere dense and sparse gradients part, see above
        assert_same(tables[-1], reference("flip_E", f"{loss}_{name}_c_carry"))
        fresh = reference("flip_E", f"{loss}_{name}_c_fresh")
        assert torch.equal(reference("flip_E", f"{loss}_{name}_c_carry"), fresh) == (name == "sgd")


@every_optimizer
@every_loss
@pytest.mark.parametrize("recipe", ["a", "b"])
def test_a_masked_gradient_lets_the_newly_frozen_rows_drift_as_it_did_in_tensorflow(recipe, loss, name):
    """The gradient is 0, but momentum is left from before: the optimizer still moves rows 0 and 6."""
    tables, _ = run(recipe, loss, name, flip=True)
    assert_same(tables[-1], reference("flip_E", f"{loss}_{name}_{recipe}"))
    newly_frozen = MASKS[0] & ~MASKS[1]
    drift = (tables[-1] - tables[FLIP])[newly_frozen].abs().max().item()
    expected = {"full_momentum": 0.51, "full_adam": 3.4e-2}
    if name in ("momentum", "adam"):
        assert drift > 1e-3
        assert drift <= expected[f"full_{name}"] * 1.02
        if loss == "full":
            assert drift == pytest.approx(expected[f"full_{name}"], rel=0.02)
    else:
        assert drift == 0


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
@every_loss
def test_decoupled_decay_moves_frozen_rows_under_a_mask_and_none_of_ours(loss, name):
    """The reference shrinks by 0.01 a step, not by 0.01 * lr; AdamW's weight_decay is 0.01 / lr to match. It shrinks
    the whole variable: in `a` that is the table, with us it is what learns."""
    ours, _ = run("fl", loss, name, decay=DECAY)
    masked, _ = run("a", loss, name, decay=DECAY)
    expected = reference("wd_E", f"{loss}_{name}_a")
    assert_same(masked[-1], expected)
    assert_same(ours[-1][MASKS[0]], expected[MASKS[0]])
    assert_only_these_rows_moved(ours, MASKS[0])
    assert (expected[~MASKS[0]] != masked[0][~MASKS[0]]).all()
    if loss == "full":  # on lookups `c` shrinks only the rows that were looked up
        assert_same(ours[-1], reference("wd_E", f"{loss}_{name}_c"))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_an_l2_penalty_reaches_only_what_learns(name):
    """0.01 * sum(variable^2), which is torch's weight_decay=0.02. In `a` the variable is the whole table, and its
    frozen rows shrink."""
    ours, _ = run("fl", "full", name, l2=2 * DECAY)
    assert_same(ours[-1], reference("l2_E", f"full_{name}_c"))
    assert_only_these_rows_moved(ours, MASKS[0])
    assert (reference("l2_E", f"full_{name}_a") != ours[-1])[~MASKS[0]].all()


def clip(parameters):
    """TensorFlow's clip_by_global_norm(0.05); torch's clip_grad_norm_ adds 1e-6 to the norm."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    for p in parameters:
        p.grad *= 0.05 / max(norm.item(), 0.05)


def test_clipping_sees_the_norm_of_what_learns():
    """Ours is the clip after the mask. A clip before the mask takes a norm in which frozen rows count."""
    ours, _ = run("fl", "full", "sgd", before_step=clip)
    assert_same(ours[-1], reference("clip_E", "full_sgd_c"))
    assert_same(ours[-1], reference("clip_E", "full_sgd_b_clip_AFTER_mask"))
    assert (ours[-1] - reference("clip_E", "full_sgd_b_clip_BEFORE_mask")).abs().max() > 1e-3
    assert_only_these_rows_moved(ours, MASKS[0])


def test_clip_grad_norm_of_torch_differs_by_its_1e_minus_6():
    ours, _ = run("fl", "full", "sgd", before_step=lambda ps: torch.nn.utils.clip_grad_norm_(ps, 0.05))
    gap = (ours[-1] - reference("clip_E", "full_sgd_c")).abs().max()
    assert 1e-12 < gap < 1e-5


@every_loss
def test_the_first_gradient_of_what_learns_is_the_reference_gradient(loss):
    embedding = table(torch.float64)
    (learned,) = fl.train_only(embedding, {"weight": fl.rows(MASKS[0])}).parameters()
    value = loss_of(loss, 0, embedding, torch.float64)
    value.backward()
    assert_same(value, torch.tensor(DATA[f"grad_f64_{loss}_c_loss"]))
    assert_same(learned.grad, torch.tensor(DATA[f"grad_f64_{loss}_a_applied"])[MASKS[0]])
    if loss == "full":
        assert_same(learned.grad, torch.tensor(DATA["grad_f64_full_c_raw"]))
    else:
        summed = torch.zeros(6, 5, dtype=torch.float64).index_add_(
            0, torch.tensor(DATA["grad_f64_lookup_c_raw_indices"]), torch.tensor(DATA["grad_f64_lookup_c_raw_values"])
        )
        assert_same(learned.grad, summed)


@pytest.mark.parametrize("start", ["seed_ones", "randn"])
def test_the_demonstration_gives_gradients_in_the_rows_that_learn_and_exact_zeros_in_the_others(start):
    matrix = torch.tensor(DATA[f"demo_{start}_emb"], requires_grad=True)
    loss = (fl.stop_gradient(matrix, ~MASKS[0][:, None]) @ torch.tensor(DATA["parm"])).sum()
    loss.backward()
    assert_same(loss, torch.tensor(DATA[f"demo_{start}_loss"]))
    assert_same(matrix.grad, torch.tensor(DATA[f"demo_{start}_grad_emb"]))
    assert torch.equal(matrix.grad[~MASKS[0]], torch.zeros(4, 5, dtype=torch.float64))
    assert (matrix.grad[MASKS[0]] != 0).all()


@pytest.mark.parametrize("value", ["half", "two", "neg"])
def test_a_mask_that_is_not_0_or_1_changes_the_forward_of_the_old_recipe_or_its_gradient_and_is_refused_by_ours(value):
    """A mask of 2 makes the forward 3 E."""
    scalar = {"half": 0.5, "two": 2.0, "neg": -1.0}[value]
    matrix = torch.tensor(DATA["E0"][:3], requires_grad=True)
    out = scalar * matrix + (abs(scalar - 1) * matrix).detach()
    out.sum().backward()
    assert_same(out, torch.tensor(DATA[f"edge_mask_{value}_matrix"]))
    assert_same(matrix.grad, torch.tensor(DATA[f"edge_mask_{value}_grad"]))
    with pytest.raises(TypeError, match="where: dtype torch\\.float64, but it must be torch\\.bool"):
        fl.stop_gradient(matrix, torch.full((3, 1), scalar, dtype=torch.float64))


def test_an_infinite_entry_or_gradient_makes_nan_in_the_old_recipe_and_stays_as_it_is_in_ours():
    values = torch.tensor(DATA["edge_nonfinite_in"])
    frozen = torch.tensor([[False], [True], [False]])
    old = values * ~frozen + values * frozen
    torch.testing.assert_close(old, torch.tensor(DATA["edge_nonfinite_matrix"]), rtol=0, atol=0, equal_nan=True)
    ours = fl.stop_gradient(values, frozen)
    torch.testing.assert_close(ours, values, rtol=0, atol=0, equal_nan=True)
    assert old.isnan().sum() == 2
    assert ours.isnan().sum() == 1

    above = torch.tensor(DATA["edge_inf_upstream_grad_matrix"])
    x = torch.ones_like(above).requires_grad_()
    (x * ~frozen + (x * frozen).detach()).backward(above)
    theirs = torch.tensor(DATA["edge_inf_upstream_grad_emb"])
    torch.testing.assert_close(x.grad, theirs, rtol=0, atol=0, equal_nan=True)
    assert theirs.isnan().sum() == 1
    x.grad = None
    fl.stop_gradient(x, frozen).backward(above)
    assert torch.equal(x.grad, torch.where(frozen, 0.0, above))
