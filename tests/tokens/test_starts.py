"""Each start of a new row, against the arithmetic written out; and which starts are refused."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch

import frostline as fl

pytest.importorskip("transformers")

from .cases import NEW, batch_of, head, make_gptj, make_llama, make_tokenizer, table, train


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_mapping_starts_each_token_at_the_mean_of_its_text(tokenizer: Any, dtype: torch.dtype) -> None:
    v = len(tokenizer)
    model = make_llama(v, tied=False).to(dtype)
    before, head_before = table(model), head(model)
    texts = {"</tool>": "use it", "<tool>": "the cat sat"}  # in another order than the tokens
    pieces = [ids_of(tokenizer, texts[token]) for token in NEW]
    assert all(len(set(ids)) > 1 for ids in pieces)
    fl.add_tokens(model, tokenizer, NEW, init=texts)
    wide = torch.promote_types(dtype, torch.float32)
    for row, ids in enumerate(pieces):
        assert torch.equal(table(model)[v + row], before[ids].to(wide).mean(0).to(dtype))
        assert torch.equal(head(model)[v + row], head_before[ids].to(wide).mean(0).to(dtype))
    assert torch.equal(table(model)[:v], before)


@pytest.mark.parametrize("text", ["cat", "</s>"])
def test_a_text_of_one_token_is_copied_to_the_bit(tokenizer: Any, text: str) -> None:
    (source,) = ids_of(tokenizer, text)
    v = len(tokenizer)
    model = make_gptj(v)
    model.lm_head.weight.data[source, 3] = -0.0
    bias = model.lm_head.bias.detach().clone()
    fl.add_tokens(model, tokenizer, ["<tool>"], init={"<tool>": text})
    assert torch.equal(table(model)[v], table(model)[source])
    assert torch.equal(head(model)[v].view(torch.int32), head(model)[source].view(torch.int32))
    assert model.lm_head.bias.detach()[v] == bias[source]


def test_a_mapping_may_name_a_token_that_was_added_before(tokenizer: Any) -> None:
    model = make_llama(len(tokenizer))
    plan = fl.add_tokens(model, tokenizer, ["<search>"])
    train(model, plan.parameters(), batch_of(tokenizer), 1)
    fl.merge(model)
    fl.add_tokens(model, tokenizer, ["<find>"], init={"<find>": "<search>"})
    assert torch.equal(table(model)[-1], table(model)[-2])


def test_a_mapping_replaces_the_row_of_a_token_that_exists(tokenizer: Any) -> None:
    model = make_llama(len(tokenizer))
    (cat,), (mat,) = ids_of(tokenizer, "cat"), ids_of(tokenizer, " mat")
    before = table(model)
    fl.add_tokens(model, tokenizer, ["cat"], init={"cat": " mat"})
    after = table(model)
    assert torch.equal(after[cat], before[mat])
    assert not torch.equal(after[cat], before[cat])
    before[cat] = after[cat]
    assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("init", "error", "says"),
    [
        ({"<tool>": "cat"}, fl.SelectionError, "init: has no text for '</tool>'. Give each listed token one."),
        ({}, fl.SelectionError, "init: has no text for '<tool>', '</tool>'."),
        ({"<tool>": "a", "</tool>": "b", "x": "c"}, fl.SelectionError, "init: 'x' is not among the tokens."),
        ({"<tool>": "a", "</tool>": ""}, fl.SelectionError, "init: no token of '', given for '</tool>', has a row."),
        ({"<tool>": "a", "</tool>": 3}, TypeError, "init: expected a text for '</tool>', such as 'search tool', got 3"),
        (("mean",), fl.SelectionError, "init: a tuple of 1. Pass two: for the embedding, and for an untied head."),
        (("mean", "mean", "mean"), fl.SelectionError, "init: a tuple of 3."),
        (("mean", "best"), fl.SelectionError, "init: 'best' is not known."),
        (("mean", torch.zeros(2, 63)), fl.SelectionError, "init: shape (2, 63). Pass shape (2, 64) for lm_head.weight"),
        ((torch.full((2, 64), torch.inf), "mean"), fl.SelectionError, "init: holds NaN or Inf in torch.float32"),
        (torch.zeros(64), fl.SelectionError, "init: shape (64,). Pass shape (2, 64)"),
        ("pieces", fl.SelectionError, "init: 'pieces' is not known. Pass 'subwords', 'mean', 'normal', 'zeros'"),
    ],
)
def test_bad_starts_name_the_value_and_change_nothing(
    tokenizer: Any, init: Any, error: type[Exception], says: str
) -> None:
    v = len(tokenizer)
    model = make_llama(v, tied=False)
    before, state = table(model), torch.get_rng_state()
    with pytest.raises(error, match=re.escape(says)):
        fl.add_tokens(model, tokenizer, NEW, init=init)
    assert len(tokenizer) == v
    assert torch.equal(table(model), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("with_head", [False, True], ids=["no head", "a tied head"])
def test_two_starts_without_a_head_of_its_own_are_refused(tokenizer: Any, with_head: bool) -> None:
    model = make_llama(len(tokenizer))
    with pytest.raises(fl.SelectionError, match="init: two starts, but the model has no head of its own"):
        fl.add_tokens(model if with_head else model.model, tokenizer, NEW, init=("mean", "zeros"))


def test_embedding_and_head_start_each_in_its_own_way(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make_gptj(v)
    before, (cat,) = table(model), ids_of(tokenizer, "cat")
    fl.add_tokens(model, tokenizer, NEW, init=(dict.fromkeys(NEW, "cat"), "zeros"))
    assert torch.equal(table(model)[v:], before[[cat, cat]])
    assert torch.equal(head(model)[v:], torch.zeros(2, 16))
    assert model.lm_head.bias[v:].tolist() == [0.0, 0.0]


def test_embedding_and_head_take_tensors_of_their_own(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make_llama(v, tied=False)
    a, b = torch.randn(2, 64), torch.randn(2, 64)
    plan = fl.add_tokens(model, tokenizer, NEW, init=(a, b))
    assert torch.equal(table(model)[v:], a)
    assert torch.equal(head(model)[v:], b)
    given = a.clone()
    train(model, plan.parameters(), batch_of(tokenizer))
    assert torch.equal(a, given)  # the caller's tensor does not train
    assert not torch.equal(table(model)[v:], a)


@pytest.mark.parametrize("tied", [True, False])
def test_zeros_are_zeros_and_learn(tokenizer: Any, tied: bool) -> None:
    v = len(tokenizer)
    model = make_llama(v, tied=tied)
    plan = fl.add_tokens(model, tokenizer, NEW, init="zeros")
    assert table(model)[v:].abs().sum() == head(model)[v:].abs().sum() == 0
    train(model, plan.parameters(), batch_of(tokenizer), 1)
    assert (table(model)[v:] != 0).any(dim=1).all()


def test_normal_has_the_mean_and_a_billionth_of_the_covariance(tokenizer: Any) -> None:
    """Of 4,000 draws in 64 dimensions; the covariance is far from a multiple of the identity."""
    v = len(tokenizer)
    model = make_llama(v).double()
    with torch.no_grad():
        mix = torch.randn(64, 64, dtype=torch.float64)
        model.model.embed_tokens.weight.copy_(torch.randn(v, 64, dtype=torch.float64) @ mix + 3)
    old = table(model)
    names = [f"<{i}>" for i in range(4000)]
    fl.add_tokens(model, tokenizer, names, init="normal")
    drawn, expected = table(model)[v:], 1e-9 * torch.cov(old.T, correction=0)
    assert len(drawn.unique(dim=0)) == len(names)
    spread = expected.diagonal().sqrt()
    assert ((drawn.mean(0) - old.mean(0)).abs() < 5 * spread / 4000**0.5).all()
    error = (torch.cov(drawn.T) - expected).abs() / (spread[:, None] * spread)
    assert error.max() < 6 / 4000**0.5
    assert torch.equal(table(model)[:v], old)


def test_normal_spreads_as_transformers_does(tokenizer: Any) -> None:
    """In distribution: along the widest and the narrowest direction of the rows, within the error of 1,000 draws."""
    v = len(tokenizer)
    model = make_llama(v, hidden_size=8).double()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(torch.tensor([9.0, 1, 1, 1, 1, 1, 1, 0.1]))
    other, old = copy.deepcopy(model), table(model)
    torch.manual_seed(1)
    fl.add_tokens(model, tokenizer, [f"<{i}>" for i in range(1000)], init="normal")
    other.resize_token_embeddings(v + 1000, mean_resizing=True)
    mine, theirs = table(model)[v:] - old.mean(0), table(other)[v:] - old.mean(0)
    assert torch.allclose(mine.std(0) / theirs.std(0), torch.ones(8, dtype=torch.float64), atol=0.15)


def test_normal_draws_from_torchs_generator_and_nothing_else_does(tokenizer: Any) -> None:
    v = len(tokenizer)
    rows = {}
    for seed in (1, 1, 2):
        model, known = make_llama(v), copy.deepcopy(tokenizer)
        torch.manual_seed(seed)
        fl.add_tokens(model, known, NEW, init="normal")
        rows.setdefault(seed, []).append(table(model)[v:])
    assert torch.equal(*rows[1])
    assert not torch.equal(rows[1][0], rows[2][0])
    for init in ("subwords", "mean", "zeros", dict.fromkeys(NEW, "cat"), torch.zeros(2, 64)):
        model, known = make_llama(v, tied=False), copy.deepcopy(tokenizer)
        state = torch.get_rng_state()
        fl.add_tokens(model, known, NEW, init=init)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_call_that_fails_after_it_has_drawn_gives_the_generator_back(tokenizer: Any) -> None:
    model = make_llama(len(tokenizer))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(fl.PatternError):
        fl.add_tokens(model, tokenizer, NEW, init="normal", also={"*lora*": fl.everything})
    assert torch.equal(torch.get_rng_state(), state)


INITS = {
    "subwords": "subwords",
    "mean": "mean",
    "normal": "normal",
    "zeros": "zeros",
    "mapping": {"<tool>": "the cat", "</tool>": "mat"},
    "tensor": torch.linspace(-1, 1, 128).view(2, 64),
    "pair": ("subwords", "zeros"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("init", INITS.values(), ids=INITS.keys())
def test_losses_and_rows_are_those_of_a_plain_model(tokenizer: Any, init: Any, dtype: torch.dtype, tmp_path) -> None:
    """Oracle: the grown plain model, its table and head put together in each forward from constants and small rows."""
    v = len(tokenizer)
    model = make_llama(v, tied=False).to(dtype)
    base, known = copy.deepcopy(model), copy.deepcopy(tokenizer)
    state = torch.get_rng_state()
    plan = fl.add_tokens(model, tokenizer, NEW, init=init)
    plain, batch = copy.deepcopy(model), batch_of(tokenizer)
    fl.merge(plain)
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    frozen = {name: plain.get_parameter(name).detach().clone() for name in names}
    rows = {name: torch.nn.Parameter(frozen[name][v:].float()) for name in names}

    class Plain(torch.nn.Module):
        def forward(self, **batch: Any) -> Any:
            whole = {name: torch.cat([frozen[name][:v], rows[name].to(dtype)]) for name in names}
            return torch.func.functional_call(plain, whole, (), batch)

    expected = train(Plain(), list(rows.values()), batch)
    losses = train(model, plan.parameters(), batch)
    torch.testing.assert_close(losses, expected, rtol=1e-6 if dtype == torch.float32 else 2e-2, atol=0)
    assert len(set(losses)) == 3
    for parameter, row in zip(plan.parameters(), rows.values(), strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(parameter.detach(), row.detach(), rtol=tolerance, atol=tolerance)
    for name in names:
        assert torch.equal(model.get_parameter(name).detach()[:v], frozen[name][:v])

    # saved, loaded onto the base, merged, generated: all agree
    fl.save_learned(model, tmp_path / "rows.safetensors")
    torch.set_rng_state(state)
    fl.add_tokens(base, known, NEW, init=init)
    fl.load_learned(base, tmp_path / "rows.safetensors")
    prompt = {"input_ids": batch["input_ids"][:1], "attention_mask": batch["attention_mask"][:1]}
    logits = [each(**prompt).logits for each in (model, base)]
    texts = [each.generate(**prompt, max_new_tokens=5, do_sample=False) for each in (model, base)]
    fl.merge(base)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], base.generate(**prompt, max_new_tokens=5, do_sample=False))
