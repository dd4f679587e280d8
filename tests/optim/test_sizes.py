"""The kernel writes by address: a parameter, gradient or state tensor of another size than expected is an error."""

import copy
import re
import threading

import pytest
import torch
from torch import nn

import frostline as fl

WITH_STATE = {
    "momentum": (fl.optim.RowSGD, {"lr": 0.1, "momentum": 0.9}),
    "dampening": (fl.optim.RowSGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "adagrad": (fl.optim.RowAdagrad, {"lr": 0.1, "lr_decay": 0.1}),
    "a sum per row": (fl.optim.RowAdagrad, {"lr": 0.1, "lr_decay": 0.1, "rowwise": True}),
    "adamw": (fl.optim.RowAdamW, {"lr": 0.1}),
    "amsgrad": (fl.optim.RowAdamW, {"lr": 0.1, "amsgrad": True}),
    "a single step count": (fl.optim.RowAdamW, {"lr": 0.1, "step_per_row": False}),
}
KINDS = {"plain": (fl.optim.RowSGD, {"lr": 0.1}), **WITH_STATE}
EACH = pytest.mark.parametrize(("make", "options"), KINDS.values(), ids=KINDS.keys())
EACH_WITH_STATE = pytest.mark.parametrize(("make", "options"), WITH_STATE.values(), ids=WITH_STATE.keys())
BACKENDS = pytest.mark.parametrize("backend", ["", "torch"], ids=["the kernel, if there is one", "plain torch"])
V, D = 10, 4


@pytest.fixture
def embedding(backend, monkeypatch):
    monkeypatch.setenv("FROSTLINE_BACKEND", backend)
    return nn.Embedding(V, D, sparse=True)


def use(embedding, ids, optimizer):
    optimizer.zero_grad()
    embedding(torch.tensor(ids)).pow(2).sum().backward()


def with_room(tensor):
    """Return a tensor with the same values at the start of twice its memory, and that memory filled with sevens."""
    memory = torch.full((2 * tensor.numel(),), 7, dtype=tensor.dtype)
    result = memory[: tensor.numel()].view(tensor.shape)
    result.copy_(tensor)
    return result, memory


def snapshot(optimizer):
    values = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    return values, copy.deepcopy(optimizer.state_dict()["state"])


def assert_unchanged(optimizer, before):
    values, state = snapshot(optimizer)
    assert all(map(torch.equal, values, before[0]))
    assert state.keys() == before[1].keys()
    for key, tensors in before[1].items():
        assert all(torch.equal(state[key][name], tensor) for name, tensor in tensors.items())


CHANGES = {
    "more rows": lambda weight: torch.cat([weight, torch.zeros(50, D, dtype=weight.dtype)]),
    "fewer rows": lambda weight: weight[:5].clone(),
    "wider rows": lambda weight: torch.cat([weight, weight], dim=1),
    "another dtype": lambda weight: weight.double(),
}


@BACKENDS
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@EACH_WITH_STATE
def test_state_made_for_another_shape_or_dtype_is_an_error_and_nothing_changes(make, options, change, embedding):
    if options.get("rowwise") and change is CHANGES["wider rows"]:
        change = CHANGES["more rows"]  # a sum for each row fits rows of any width
    other = nn.Parameter(torch.ones(2))
    optimizer = make([other, embedding.weight], **options)
    other.grad = torch.ones(2)
    use(embedding, [0, 1, 1], optimizer)
    optimizer.step()
    memories = []
    for name, tensor in optimizer.state[embedding.weight].items():
        optimizer.state[embedding.weight][name], memory = with_room(tensor)
        memories.append((memory, tensor.numel()))
    embedding.weight.data = change(embedding.weight.data)
    use(embedding, [len(embedding.weight) - 1, 0], optimizer)
    other.grad = torch.ones(2)
    before = snapshot(optimizer)
    with pytest.raises(fl.StaleOptimizerError, match=r"its state '.*Make a new optimizer") as caught:
        optimizer.step()
    assert isinstance(caught.value, RuntimeError)
    assert_unchanged(optimizer, before)  # of the other parameter, too, which comes first and fits
    assert all(torch.equal(memory[count:], torch.full_like(memory[count:], 7)) for memory, count in memories)
    embedding.weight.data = embedding.weight.data.float()
    optimizer = make([other, embedding.weight], **options)
    use(embedding, [0], optimizer)
    optimizer.step()
    assert (embedding.weight[0] != before[0][1][0]).any()


@BACKENDS
@EACH
@pytest.mark.parametrize("is_sparse", [True, False], ids=["sparse", "dense"])
def test_a_gradient_of_another_shape_is_an_error_and_nothing_changes(make, options, is_sparse, embedding):
    weight, memory = with_room(torch.ones(V, D))
    parameter = nn.Parameter(weight)
    optimizer = make([parameter], **options)
    parameter.grad = torch.ones(V, D).to_sparse(1) if is_sparse else torch.ones(V, D)
    optimizer.step()
    moved = parameter.detach().clone()
    assert (moved != 1).all()
    parameter.data = weight[:5]
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=re.escape(f"grad: shape ({V}, {D}), but its parameter has shape (5, {D})")):
        optimizer.step()
    assert_unchanged(optimizer, before)
    assert torch.equal(weight, moved)
    assert (memory[V * D :] == 7).all()


@BACKENDS
@EACH_WITH_STATE
@pytest.mark.parametrize("replace", [lambda x: x[:-1], lambda x: x.to(torch.complex64)], ids=["shorter", "wrong dtype"])
def test_state_that_somebody_replaced_is_checked_tensor_by_tensor(make, options, replace, embedding):
    optimizer = make([embedding.weight], **options)
    use(embedding, [3], optimizer)
    optimizer.step()
    state = optimizer.state[embedding.weight]
    for name, tensor in list(state.items()):
        if tensor.dim() == 0:
            continue
        state[name] = replace(tensor)
        with pytest.raises(fl.StaleOptimizerError, match=f"its state '{name}'"):
            optimizer.step()
        state[name] = tensor
    before = embedding.weight.detach().clone()
    optimizer.step()
    assert (embedding.weight != before).any(1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_parameter_in_half_precision_keeps_its_float32_state(dtype):
    embedding = nn.Embedding(V, D, sparse=True)
    optimizer = fl.optim.RowAdamW(embedding.parameters(), lr=0.1)
    use(embedding, [3], optimizer)
    optimizer.step()
    embedding.to(dtype)  # state of both is float32: training goes on
    use(embedding, [3, 4], optimizer)
    before = embedding.weight.detach().clone()
    optimizer.step()
    assert (embedding.weight != before).any(1).nonzero().flatten().tolist() == [3, 4]


def test_a_parameter_that_became_complex_is_an_error():
    embedding = nn.Embedding(V, D)
    optimizer = fl.optim.RowSGD(embedding.parameters(), lr=0.1)
    embedding.weight.data = embedding.weight.data.to(torch.complex64)
    embedding.weight.grad = torch.ones(V, D, dtype=torch.complex64)
    with pytest.raises(ValueError, match="complex64"):
        optimizer.step()


@EACH
def test_steps_in_several_threads_are_those_of_a_single_thread(make, options):
    def train(seed):
        generator = torch.Generator().manual_seed(seed)
        embedding = nn.Embedding(50, D, sparse=True, _weight=torch.randn(50, D, generator=generator))
        optimizer = make(embedding.parameters(), **options)
        for _ in range(30):
            use(embedding, torch.randint(50, (20,), generator=generator).tolist(), optimizer)
            optimizer.step()
        return embedding.weight.detach()

    alone = [train(seed) for seed in range(6)]
    together = {}
    threads = [threading.Thread(target=lambda seed=seed: together.update({seed: train(seed)})) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[seed], together[seed]) for seed in range(6))
    assert len({tuple(weight.flatten().tolist()) for weight in alone}) == 6
