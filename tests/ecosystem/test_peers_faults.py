"""What goes wrong, mostly silently, with other ways to train some rows: each a test that it does not here.

Faults of peft 0.21 (trainable tokens), of `nn.utils.parametrize`, and of masking gradients; where the fault is one of a
recipe in plain torch, the test shows it failing beside ours.
"""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl

V, D, ROWS = 12, 6, [7, 3, 11]
FROZEN = [row for row in range(V) if row not in ROWS]
IDS = torch.tensor([[0, 3, 3, 7], [9, 1, 11, 0]])


class Model(nn.Module):
    """A lookup, and a head with a bias; tied or not."""

    def __init__(self, tied: bool, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(V, D, **options)
        self.head = nn.Linear(D, V)
        nn.init.normal_(self.head.bias)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(ids)))


def steps(model: nn.Module, plan: fl.Plan, count: int = 3) -> None:
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(count):
        optimizer.zero_grad()
        model(IDS).square().sum().backward()
        optimizer.step()


def table(model: nn.Module, name: str = "embed.weight") -> Tensor:
    return model.get_parameter(name).detach().clone()


@pytest.mark.parametrize("tied", [True, False])
def test_the_bias_of_a_head_is_kept(tied: bool) -> None:
    model = Model(tied)
    bias, out = model.head.bias.detach().clone(), model(IDS)
    plan = fl.train_only(model, {"head.weight": fl.rows(ROWS)})
    torch.testing.assert_close(model(IDS), out, rtol=1e-6, atol=1e-6)
    steps(model, plan)
    hidden = torch.tanh(model.embed(IDS))
    torch.testing.assert_close(model(IDS), hidden @ table(model, "head.weight").T + bias, rtol=1e-5, atol=1e-6)
    fl.merge(model)
    assert torch.equal(model.head.bias, bias)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # ids have no gradient, in any embedding
def test_hooks_on_the_layer_itself_still_fire_before_and_after_a_merge() -> None:
    model, fired = Model(tied=False), []
    for name in ("embed", "head"):
        layer = model.get_submodule(name)
        layer.register_forward_pre_hook(lambda *_, name=name: fired.append(f"before {name}"))
        layer.register_forward_hook(lambda *_, name=name: fired.append(f"after {name}"))
        layer.register_full_backward_hook(lambda *_, name=name: fired.append(f"backward {name}"))
    expected = ["before embed", "after embed", "before head", "after head", "backward head", "backward embed"]
    fl.train_only(model, {"*.weight": fl.rows(ROWS)})
    model(IDS).sum().backward()
    assert fired == expected
    fl.merge(model)
    model(IDS).sum().backward()
    assert fired == expected * 2


def test_a_hook_may_change_what_the_layer_returns() -> None:
    model = Model(tied=False)
    fl.train_only(model, {"embed.weight": fl.rows(ROWS)})
    model.embed.register_forward_hook(lambda module, args, out: out * 0)
    assert torch.equal(model(IDS), model.head.bias.expand(2, 4, V))


class Scaled(nn.Embedding):
    """A forward of its own, as Gemma's."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 15.3 - 1


def test_the_forward_of_a_subclass_is_the_one_that_runs() -> None:
    module = Scaled(V, D)
    out, plain = module(IDS), nn.Embedding.forward(module, IDS)
    assert (out - plain).abs().max() > 5
    plan = fl.train_only(module, {"weight": fl.rows(ROWS)})
    assert torch.equal(module(IDS), out)
    module(IDS).sum().backward()
    assert plan.parameters()[0].grad[:, 0].tolist() == pytest.approx([15.3, 30.6, 15.3])


def test_ids_given_twice_are_refused_by_name() -> None:
    with pytest.raises(fl.RowError, match=re.escape("embed.weight: rows: ids listed more than once: 3. List each")):
        fl.train_only(Model(tied=True), {"embed.weight": fl.rows([3, 7, 3])})


def test_a_padding_row_that_is_asked_for_learns_and_one_that_is_not_is_refused() -> None:
    model = Model(tied=False, padding_idx=3)
    with pytest.raises(fl.RowError, match=r"row 3 is the padding row \(padding_idx=3\)"):
        fl.train_only(model, {"embed.weight": fl.rows(ROWS)})
    before = table(model)
    plan = fl.train_only(model, {"embed.weight": fl.rows(ROWS, learn_padding=True)})
    steps(model, plan, 1)
    assert (plan.parameters()[0].grad[1] != 0).all()
    after = table(model)
    assert (after[3] != before[3]).all()
    assert torch.equal(after[FROZEN], before[FROZEN])


def test_a_sparse_table_trains_its_rows_in_use() -> None:
    model = Model(tied=False, sparse=True)
    before = table(model)
    plan = fl.train_only(model, {"embed.weight": fl.rows([*ROWS, 5])})  # row 5 learns, and no id names it
    model(IDS).square().sum().backward()
    fl.clip_grad_norm_(plan.parameters(), 1.0)
    fl.optim.RowAdamW(plan.parameters(), lr=0.1, weight_decay=0.5).step()
    after = table(model)
    assert (after[ROWS] != before[ROWS]).all()
    assert torch.equal(after[FROZEN], before[FROZEN])


def test_tied_weights_stay_tied_in_memory_in_the_state_dict_and_in_a_file() -> None:
    model = Model(tied=True)
    before, keys = table(model), list(model.state_dict())
    plan = fl.train_only(model, {"head.weight": fl.rows(ROWS)})
    assert len(plan.parameters()) == 1
    steps(model, plan)
    assert torch.equal(table(model), table(model, "head.weight"))
    saved = model.state_dict()
    assert list(saved) == keys
    assert saved["embed.weight"].data_ptr() == saved["head.weight"].data_ptr()
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["embed.weight"].data_ptr() == loaded["head.weight"].data_ptr()  # written once
    plain = Model(tied=True)
    plain.load_state_dict(loaded)
    assert torch.equal(plain.embed.weight, table(model))
    assert (plain.embed.weight[ROWS] != before[ROWS]).all()
    assert torch.equal(plain.embed.weight[FROZEN], before[FROZEN])
    fl.merge(model)
    assert model.embed.weight is model.head.weight


def test_tied_weights_of_transformers_are_saved_as_a_plain_model_that_loads(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": V, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    before = table(model, "transformer.wte.weight")
    plan = fl.train_only(model, {"transformer.wte.weight": fl.rows(ROWS)})
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1, weight_decay=0.5)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(loaded.lm_head.weight, table(model, "transformer.wte.weight"))
    assert (loaded.lm_head.weight[ROWS] != before[ROWS]).all()
    assert torch.equal(loaded.lm_head.weight[FROZEN], before[FROZEN])


@pytest.mark.parametrize("clip", [torch.nn.utils.clip_grad_norm_, fl.clip_grad_norm_])
def test_clipping_counts_only_what_learns(clip: Any) -> None:
    dense = Model(tied=True).requires_grad_()
    dense(IDS).square().sum().backward()
    learned_norm = dense.embed.weight.grad[ROWS].norm()
    whole_norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in dense.parameters()])
    assert whole_norm > 1.3 * learned_norm  # what clipping before masking would go by

    model = Model(tied=True)
    plan = fl.train_only(model, {"embed.weight": fl.rows(ROWS)})
    (learned,) = plan.parameters()
    for parameters in (plan.parameters(), model.parameters()):
        learned.grad = None
        model(IDS).square().sum().backward()
        unclipped = learned.grad.clone()
        norm = clip(parameters, 0.5)
        torch.testing.assert_close(norm, learned_norm, rtol=1e-5, atol=0)
        torch.testing.assert_close(learned.grad, unclipped * 0.5 / learned_norm, rtol=1e-4, atol=1e-6)


def test_a_padding_index_does_not_freeze_under_decay_but_a_plan_does() -> None:
    for frozen_by_plan in (False, True):
        torch.manual_seed(0)
        module = nn.Embedding(V, D, padding_idx=0)
        with torch.no_grad():
            module.weight[0] = 1.0
        rows = [row for row in range(V) if row]
        plan = fl.train_only(module, {"weight": fl.rows(rows) if frozen_by_plan else fl.everything})
        before = module.weight.detach().clone()
        optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            module(IDS).square().sum().backward()
            optimizer.step()
        after = module.weight.detach().clone()
        assert (after[1:] != before[1:]).all()
        assert (after[0] == 1.0).all() if frozen_by_plan else (after[0] < 0.91).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0),
    ],
    ids=["momentum", "adam"],
)
def test_momentum_of_the_past_moves_a_masked_row_and_none_that_a_new_plan_froze(make: Any) -> None:
    masked = nn.Embedding(V, D)
    mask = torch.ones(V, 1)
    masked.weight.register_hook(lambda gradient: gradient * mask)
    model = nn.Embedding(V, D)
    ours = make(fl.train_only(model, {"weight": fl.everything}).parameters())
    theirs = make(masked.parameters())
    for turn in range(4):
        if turn == 2:
            mask[FROZEN] = 0
            at_freezing = masked.weight.detach().clone(), model.weight.detach().clone()
            plan = fl.train_only(model, {"weight": fl.rows(ROWS)})
            with pytest.raises(fl.StaleOptimizerError, match=r"Make it after train_only"):
                ours.step()
            ours = make(plan.parameters())
        for module, optimizer in ((masked, theirs), (model, ours)):
            optimizer.zero_grad()
            module(torch.arange(V)).square().sum().backward()
            optimizer.step()
    assert (masked.weight[FROZEN] != at_freezing[0][FROZEN]).all()
    after = model.weight.detach().clone()
    assert torch.equal(after[FROZEN], at_freezing[1][FROZEN])
    assert (after[ROWS] != at_freezing[1][ROWS]).all()


def test_parametrize_renames_keys_and_loses_a_tie_where_a_plan_keeps_both() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    theirs, ours = Model(tied=True), Model(tied=True)
    keys = list(theirs.state_dict())
    nn.utils.parametrize.register_parametrization(theirs.embed, "weight", Same())
    assert list(theirs.state_dict()) != keys
    assert not torch.equal(theirs.embed.weight, theirs.head.weight)  # the head does not follow

    plan = fl.train_only(ours, {"embed.weight": fl.rows(ROWS)})
    steps(ours, plan)
    assert list(ours.state_dict()) == keys
    assert torch.equal(table(ours), table(ours, "head.weight"))
