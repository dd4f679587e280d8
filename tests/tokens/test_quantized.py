"""New tokens on a quantized base, and in a quantized table or head: against a plain model, and bits that stay."""

from __future__ import annotations

import contextlib
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl
from frostline.partial.quantized import is_quantized

pytest.importorskip("transformers")

from . import cases
from .cases import NEW, batch_of, make_llama, table, train
from .quantizers import QUANTIZERS, linears, storage
from .test_add_tokens import assert_same_state, interrupted, whole_state

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries
EACH = pytest.mark.parametrize("library", QUANTIZERS)
EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
TABLES = {"embedding": ["model.embed_tokens"], "head": ["lm_head"], "both": ["model.embed_tokens", "lm_head"]}


def make_tokenizer() -> Any:
    """Of 320 tokens: libraries want numbers that 32 or 64 divides."""
    tokenizer = cases.make_tokenizer()
    tokenizer.add_tokens([f"<word{i}>" for i in range(len(tokenizer), 320)])
    return tokenizer


def make(library: str, names: list[str] | None = None, tied: bool = False, dtype: Any = torch.float32) -> Any:
    model = make_llama(len(make_tokenizer()), tied).to(dtype)
    QUANTIZERS[library](model, linears(model) if names is None else names)
    return model.eval()


def test_each_library_quantizes() -> None:
    for library, quantize in QUANTIZERS.items():
        try:
            model = make_llama(8, tied=False)
            quantize(model, ["lm_head"])
        except pytest.skip.Exception:
            continue
        assert type(model.lm_head.weight) is not nn.Parameter or type(model.lm_head) is not nn.Linear, library


@EACH_DTYPE
@EACH
def test_float_tables_over_a_quantized_base_learn_as_in_a_plain_model(
    library: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Oracle: the same quantized model, its table put together in each forward from a constant and small rows."""
    tokenizer = make_tokenizer()
    v = len(tokenizer)
    model = make(library, tied=True, dtype=dtype)
    base, known = make(library, tied=True, dtype=dtype), copy.deepcopy(tokenizer)
    plan = fl.add_tokens(model, tokenizer, NEW)
    assert (plan.learned, plan.total) == (128, sum(p.numel() for p in make_llama(v + 2).parameters()))
    plain, batch = make(library, tied=True, dtype=dtype), batch_of(tokenizer)
    fl.add_tokens(plain, copy.deepcopy(tokenizer), NEW)
    fl.merge(plain)
    whole = plain.model.embed_tokens.weight.detach().clone()
    rows = nn.Parameter(whole[v:].float())
    before = {name: storage(model.get_submodule(name)) for name in linears(model)}

    class Plain(nn.Module):
        def forward(self, **batch: Any) -> Any:
            tensor = torch.cat([whole[:v], rows.to(dtype)])
            names = {"model.embed_tokens.weight": tensor}
            return torch.func.functional_call(plain, names, (), batch, tie_weights=True)

    expected, losses = train(Plain(), [rows], batch), train(model, plan.parameters(), batch)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(plan.parameters()[0].detach(), rows.detach(), rtol=tolerance, atol=tolerance)
    assert torch.equal(table(model)[:v], whole[:v])
    for name, bits in before.items():
        assert all(torch.equal(a, b) for a, b in zip(storage(model.get_submodule(name)), bits, strict=True)), name
    _expect_the_same_after_a_load(model, base, known, batch, tmp_path)


def _expect_the_same_after_a_load(model: Any, base: Any, known: Any, batch: Any, folder: Path) -> None:
    """Saved, loaded onto the same base, generated and merged, all give the same."""
    fl.save_learned(model, folder / "rows.safetensors")
    fl.add_tokens(base, known, NEW)
    fl.load_learned(base, folder / "rows.safetensors")
    prompt = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        assert torch.equal(base(**batch).logits, model(**batch).logits)
    how = {"max_new_tokens": 4, "do_sample": False}
    text = model.generate(**prompt, **how)
    assert torch.equal(base.generate(**prompt, **how), text)
    fl.merge(base)
    assert torch.equal(base.generate(**prompt, **how), text)


@pytest.mark.parametrize("spare", [0, 2], ids=["new", "one known"])
@EACH_DTYPE
@pytest.mark.parametrize("names", TABLES.values(), ids=TABLES.keys())
@EACH
def test_rows_beside_a_quantized_table_learn_as_in_a_plain_model(
    library: str, names: list[str], dtype: torch.dtype, spare: int, tmp_path: Path
) -> None:
    """Oracle: the quantized modules as they were, called for old tokens; what learns is put in by hand."""
    tokenizer = make_tokenizer()
    v = len(tokenizer)
    model = make(library, names, dtype=dtype)
    untouched, known = make(library, names, dtype=dtype), copy.deepcopy(tokenizer)
    tokens = NEW if not spare else ["<tool>", "cat"]
    plan = fl.add_tokens(model, tokenizer, tokens)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    bits = {name: storage(module) for name in names if is_quantized(module := model.get_submodule(name))}
    assert len(tokenizer) == model.config.vocab_size == v + (1 if spare else 2)
    assert plan.learned == 2 * 2 * 64
    notes = {line.name: line.note for line in plan.lines if line.learned}
    for name in bits:
        assert notes[f"{name}.new_tokens.weight"] == "beside a quantized table, also after fl.merge"

    embed, lm_head = untouched.model.embed_tokens, untouched.lm_head
    rows, head_rows = (nn.Parameter(p.detach().clone()) for p in plan.parameters())

    class Embed(nn.Module):
        def forward(self, batch_ids: Any) -> Any:
            out = embed(torch.where(torch.isin(batch_ids, torch.tensor(ids)), 0, batch_ids))
            for k, id in enumerate(ids):
                out = torch.where((batch_ids == id)[..., None], rows[k].to(dtype), out)
            return out

    class Head(nn.Module):
        def forward(self, x: Any) -> Any:
            stored, mine = lm_head(x), F.linear(x, head_rows.to(dtype))
            columns = list(stored.unbind(-1)) + [None] * (len(tokenizer) - v)
            for k, id in enumerate(ids):
                columns[id] = mine[..., k]
            return torch.stack(columns, -1)

    oracle = make(library, names, dtype=dtype)
    oracle.model.embed_tokens, oracle.lm_head, oracle.config.vocab_size = Embed(), Head(), len(tokenizer)
    batch = batch_of(tokenizer)
    expected, losses = train(oracle, [rows, head_rows], batch), train(model, plan.parameters(), batch)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)
    for mine, theirs in zip(plan.parameters(), (rows, head_rows), strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=tolerance, atol=tolerance)
    assert len(set(losses)) == 3
    for name, before in bits.items():
        assert all(torch.equal(a, b) for a, b in zip(storage(model.get_submodule(name)), before, strict=True)), name
    if not spare:
        _expect_the_same_after_a_load(model, untouched, known, batch, tmp_path)


@pytest.mark.parametrize("names", TABLES.values(), ids=TABLES.keys())
@EACH
def test_old_tokens_keep_their_rows_and_logits_to_the_bit(library: str, names: list[str]) -> None:
    tokenizer = make_tokenizer()
    v = len(tokenizer)
    model = make(library, names)
    x, ids = torch.randn(3, 64), torch.arange(v)
    with torch.no_grad():
        rows, logits = model.model.embed_tokens(ids), model.lm_head(x)
    fl.add_tokens(model, tokenizer, NEW)
    with torch.no_grad():
        assert torch.equal(model.model.embed_tokens(ids), rows)
        torch.testing.assert_close(model.lm_head(x)[:, :v], logits, rtol=1e-6, atol=1e-6)
        if "lm_head" in names:
            assert torch.equal(model.lm_head(x)[:, :v], logits)


@pytest.mark.parametrize("init", ["subwords", "mean", "zeros", {"<tool>": "the cat", "</tool>": "cat"}], ids=str)
@EACH
def test_rows_beside_start_from_the_dequantized_ones(library: str, init: Any) -> None:
    tokenizer = make_tokenizer()
    v = len(tokenizer)
    model = make(library, ["model.embed_tokens"])
    with torch.no_grad():
        rows = model.model.embed_tokens(torch.arange(v))
    pieces = [
        [p.id for p in tokenizer.backend_tokenizer.model.tokenize(t)] if init == "subwords" else None for t in NEW
    ]
    if isinstance(init, dict):
        pieces = [tokenizer(init[t], add_special_tokens=False).input_ids for t in NEW]
    fl.add_tokens(model, tokenizer, NEW, init=init)
    expected = [rows[ids].mean(0) if ids else rows.mean(0) * (init == "mean") for ids in pieces]
    with torch.no_grad():
        got = model.model.embed_tokens(torch.tensor([v, v + 1]))
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-6, atol=1e-7)


@EACH
def test_rows_learned_on_a_quantized_model_load_into_the_float_one_and_back(library: str, tmp_path: Path) -> None:
    tokenizer, known = make_tokenizer(), make_tokenizer()
    v = len(tokenizer)
    model, plain = make(library, TABLES["both"]), make_llama(v, tied=False)
    plan = fl.add_tokens(model, tokenizer, NEW)
    train(model, plan.parameters(), batch_of(tokenizer))
    fl.save_learned(model, tmp_path / "rows.safetensors")
    fl.add_tokens(plain, known, list(reversed(NEW)))
    before = table(plain)
    loaded = fl.load_learned(plain, tmp_path / "rows.safetensors")
    assert set(loaded.tensors) == {"model.embed_tokens.weight", "lm_head.weight"}
    ids = known.convert_tokens_to_ids(NEW)
    rows = model.model.embed_tokens(torch.tensor([v, v + 1])).detach()
    assert torch.equal(table(plain)[ids], rows)
    assert not torch.equal(before[ids], rows)
    fl.save_learned(plain, tmp_path / "back.safetensors")
    with torch.no_grad():
        for parameter in plan.parameters():
            parameter.zero_()
    fl.load_learned(model, tmp_path / "back.safetensors")
    assert torch.equal(model.model.embed_tokens(torch.tensor([v, v + 1])), rows)


@pytest.mark.parametrize("names", [None, *TABLES.values()], ids=["base", *TABLES])
@EACH
def test_lora_and_new_tokens_learn_together(library: str, names: list[str] | None, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    tokenizer = make_tokenizer()
    v = len(tokenizer)
    model, base = (make(library, [*linears(make_llama(8)), *(names or [])]) for _ in range(2))
    known = copy.deepcopy(tokenizer)

    def adapted(model: Any, tokenizer: Any) -> tuple[Any, fl.Plan]:
        torch.manual_seed(1)
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).eval()
        return model, fl.add_tokens(model, tokenizer, NEW, also={"*lora_*": fl.everything})

    model, plan = adapted(model, tokenizer)
    batch = batch_of(tokenizer)
    start = [parameter.detach().clone() for parameter in plan.parameters()]
    losses = train(model, plan.parameters(), batch, 4)
    assert losses[-1] < losses[0]
    assert not any(torch.equal(a, b.detach()) for a, b in zip(start, plan.parameters(), strict=True))
    fl.save_learned(model, tmp_path / "both.safetensors")
    other, _ = adapted(base, known)
    fl.load_learned(other, tmp_path / "both.safetensors")
    with torch.no_grad():
        assert torch.equal(other(**batch).logits, model(**batch).logits)
    assert model(**batch).logits.shape[-1] == v + 2


@EACH
def test_copies_and_pickles_keep_the_rows_beside(library: str) -> None:
    """As far as the library's own weights can be copied and pickled."""
    tokenizer = make_tokenizer()
    model = make(library, TABLES["both"])
    copied: list[Any] = []
    for clone in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))):
        with contextlib.suppress(Exception):
            clone(model.lm_head)
            copied.append(clone)
    fl.add_tokens(model, tokenizer, NEW)
    x, ids = torch.randn(2, 64), torch.tensor([3, 321, 320])
    with torch.no_grad():
        for clone in copied:
            assert torch.equal(clone(model.lm_head)(x), model.lm_head(x))
            assert torch.equal(clone(model.model.embed_tokens)(ids), model.model.embed_tokens(ids))
    assert len(copied) >= (library != "quanto int8")  # which can be neither; of torchao's one


@pytest.mark.parametrize("library", [library for library in QUANTIZERS if not library.startswith("quanto")])
def test_more_tokens_after_a_merge_keep_the_rows_that_learned(library: str) -> None:
    tokenizer = make_tokenizer()
    v = len(tokenizer)
    model = make(library, TABLES["both"])
    plan = fl.add_tokens(model, tokenizer, ["<tool>", "cat"])
    train(model, plan.parameters(), batch_of(tokenizer))
    (cat,) = tokenizer("cat", add_special_tokens=False).input_ids
    with torch.no_grad():
        learned = model.model.embed_tokens(torch.tensor([v, cat]))
        logits = model.lm_head(torch.eye(64))[:, [v, cat]]
    with pytest.raises(fl.PartialTensorError, match=r"new_tokens.weight learns in part. Call fl.merge"):
        fl.add_tokens(model, tokenizer, NEW)
    assert len(tokenizer) == v + 1
    fl.merge(model)
    plan = fl.add_tokens(model, tokenizer, NEW)
    assert plan.learned == 2 * 2 * 64
    with torch.no_grad():
        assert torch.equal(model.model.embed_tokens(torch.tensor([v, cat])), learned)
        torch.testing.assert_close(model.lm_head(torch.eye(64))[:, [v, cat]], logits, rtol=1e-6, atol=1e-7)
    train(model, plan.parameters(), batch_of(tokenizer))
    with torch.no_grad():
        assert torch.equal(model.model.embed_tokens(torch.tensor([cat])), learned[1:])


@pytest.mark.parametrize("names", TABLES.values(), ids=TABLES.keys())
@EACH
def test_after_an_error_nothing_stands_beside(library: str, names: list[str]) -> None:
    tokenizer = make_tokenizer()
    model = make(library, names)
    batch = batch_of(tokenizer)
    with torch.no_grad():
        before = model(**batch).logits
    classes, size = [type(module) for module in model.modules()], len(tokenizer)
    with pytest.raises(fl.PatternError):
        fl.add_tokens(model, tokenizer, NEW, also={"*nothing_like_it*": fl.everything})
    assert [type(module) for module in model.modules()] == classes
    assert len(tokenizer) == model.config.vocab_size == size
    assert not any("new_token" in name for module in model.modules() for name in [*vars(module), *module._modules])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)
    fl.add_tokens(model, tokenizer, NEW)
    assert model(**batch_of(tokenizer)).logits.shape[-1] == size + 2


@pytest.mark.parametrize("library", ["own int8"])
def test_interrupted_at_any_line_a_quantized_model_is_as_it_was(library: str) -> None:
    tokenizer = make_tokenizer()
    model = make(library, TABLES["both"])
    before, line = whole_state(model, tokenizer), 1
    while interrupted(lambda: fl.add_tokens(model, tokenizer, NEW), line):
        assert_same_state(whole_state(model, tokenizer), before)
        line += 131  # every call is traced, and slow
    assert line > 500
    assert len(model.lm_head.new_token_slots) == 322


def test_a_quantized_head_that_is_tied_to_its_embedding_stays_tied() -> None:
    tokenizer = make_tokenizer()
    model = make("own int8", TABLES["both"])
    head, embed = model.lm_head, model.model.embed_tokens
    head.weight, head.scale = embed.weight, embed.scale
    plan = fl.add_tokens(model, tokenizer, NEW)
    assert plan.learned == 2 * 64
    assert head.new_tokens is embed.new_tokens
    train(model, plan.parameters(), batch_of(tokenizer))
    with torch.no_grad():
        rows = model.model.embed_tokens(torch.tensor([320, 321]))
        torch.testing.assert_close(model.lm_head(torch.eye(64))[:, 320:].T, rows)


def test_a_head_without_a_weight_is_refused_and_nothing_changes() -> None:
    """As those of GPTQ and HQQ."""

    class Packed(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("qweight", weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.qweight.T

    tokenizer = make_tokenizer()
    model = make("own int8", [])
    model.lm_head = Packed(model.lm_head.weight.detach())
    with pytest.raises(fl.PartialTensorError, match="model: its Packed has no weight, so no rows can be added"):
        fl.add_tokens(model, tokenizer, NEW)
    assert len(tokenizer) == len(table(model)) == 320
