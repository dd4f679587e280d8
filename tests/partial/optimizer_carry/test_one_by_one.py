"""A slow oracle keeps the state of every entry by itself, and makes a new optimizer for every plan."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import nn

import frostline as fl

from .cases import NAMES, OPTIMIZERS, D, Net, V, steps, values

# The slow oracle: the state of each entry by itself. What optimizers begin with, from their documentation.
BEGINS = {
    "sgd": {"momentum_buffer": 0.0},
    "adam": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "adam fused": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "adam tensor lr": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "lion": {"exp_avg": 0.0},
    "adamw amsgrad": {"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0},
    "adagrad": {"sum": 0.3},
    "rmsprop": {"square_avg": 0.0, "momentum_buffer": 0.0, "grad_avg": 0.0},
    "nadam": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "radam": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "adamax": {"exp_avg": 0.0, "exp_inf": 0.0},
    "rprop": {"prev": 0.0, "step_size": 0.01},
    "adadelta": {"square_avg": 0.0, "acc_delta": 0.0},
    "row adamw step": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
}


class OneByOne:
    """Every entry with its value and its state, in dictionaries; for each plan a new model part and a new optimizer."""

    def __init__(self, name, model):
        self.name = name
        self.values = values(model)
        self.state = {key: {} for key in NAMES}  # tensor -> index of an entry -> its state
        self.common = {key: {} for key in NAMES}  # tensor -> state of the tensor as a whole

    def train(self, learns, order):
        """Three steps on `learns`, tensor -> indices as tuples, shaped like the part that learns."""
        parts = {}
        for key in order:
            flat = [index for row in learns[key] for index in row]
            shape = (len(learns[key]), *self.values[key].shape[1:])
            if any(len(row) == 1 for row in learns[key]) and len(self.values[key].shape) > 1:
                shape = (len(flat),)
            part = torch.tensor([self.values[key][index].item() for index in flat]).view(shape)
            parts[key] = flat, nn.Parameter(part)
        optimizer = OPTIMIZERS[self.name]([part for _, part in parts.values()] or [torch.empty(0)])
        for key in NAMES:
            flat = parts[key][0] if key in parts else []
            kept_state = {index: self.state[key][index] for index in flat if index in self.state[key]}
            if kept_state:
                part = parts[key][1]
                optimizer.state[part] = dict(self.common[key])
                for field, begin in BEGINS[self.name].items():
                    column = [kept_state[index][field] if index in kept_state else begin for index in flat]
                    optimizer.state[part][field] = torch.tensor(column).view(part.shape)
        for _ in range(3):
            optimizer.zero_grad()
            total = 0
            for key, (flat, part) in parts.items():
                steepness = torch.linspace(0.5, 2, self.values[key].numel()).view(self.values[key].shape)
                steepness = torch.tensor([steepness[index].item() for index in flat]).view(part.shape)
                total = total + (steepness * (part - 1) * (part - 1)).sum()
            if parts:
                total.backward()
            optimizer.step()
        for key in NAMES:
            self.state[key], self.common[key] = {}, {}
        for key, (flat, part) in parts.items():
            state = optimizer.state[part]
            fields = {field: state[field].flatten().tolist() for field in BEGINS[self.name]}
            self.common[key] = {field: value for field, value in state.items() if field not in fields}
            for i, index in enumerate(flat):
                self.values[key][index] = part.detach().flatten()[i]
                self.state[key][index] = {field: column[i] for field, column in fields.items()}


SHAPES = {name: tuple(value.shape) for name, value in values(Net()).items()}


def indices_of(kind, chosen, shape):
    """The part that learns as a list of lists of indices, one list for each row (or entry)."""
    grid = torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(*shape, -1)
    if kind == "entries":
        return [[tuple(index.tolist())] for index in torch.stack(chosen, 1)]
    rows = range(shape[0]) if kind == "everything" else chosen
    return [[tuple(index.tolist()) for index in grid[row].reshape(-1, len(shape))] for row in rows]


@st.composite
def a_plan(draw):
    """Selections for `train_only`, and the same as indices, made by hand."""
    selections, learns = {}, {}
    for key, shape in SHAPES.items():
        kind = draw(st.sampled_from(["everything", "nothing", "rows", "rows", "entries"]))
        if kind == "entries":
            mask = torch.tensor(draw(st.lists(st.booleans(), min_size=4, max_size=9))).repeat(V * D)
            mask = mask[: torch.Size(shape).numel()].view(shape)
            selections[key], chosen = fl.entries(mask), mask.nonzero(as_tuple=True)
            if len(chosen[0]):
                learns[key] = indices_of("entries", chosen, shape)
        elif kind == "rows":
            rows = draw(st.lists(st.integers(0, shape[0] - 1), unique=True, max_size=6))
            selections[key] = fl.rows(rows)
            if rows:
                learns[key] = indices_of("rows", rows, shape)
        else:
            selections[key] = getattr(fl, kind)
            if kind == "everything":
                learns[key] = indices_of("everything", None, shape)
    return selections, learns


@settings(max_examples=150, deadline=None, print_blob=True)
@given(name=st.sampled_from(sorted(BEGINS)), plans=st.lists(a_plan(), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_any_sequence_of_plans_ends_with_the_bits_and_the_state_of_entries_kept_one_by_one(name, plans, seed):
    torch.manual_seed(seed)
    model = Net()
    oracle, optimizer = OneByOne(name, model), OPTIMIZERS[name](model.parameters())
    for selections, learns in plans:
        plan = fl.train_only(model, selections)
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        plan.carry(optimizer, group=0)
        assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in plan.parameters()]
        order = [names[id(p)].removesuffix("_learned") for p in plan.parameters()]
        if learns:
            steps(model, optimizer)
        oracle.train(learns, order)
        for key, value in values(model).items():
            assert torch.equal(value, oracle.values[key])
        for key, parameter in zip(order, plan.parameters(), strict=True):
            flat = [index for row in learns[key] for index in row]
            for field in BEGINS[name]:
                expected = torch.tensor([oracle.state[key][index][field] for index in flat])
                assert torch.equal(optimizer.state[parameter][field].flatten(), expected)
        assert len(optimizer.state) == len(order)
