"""New tokens: which tensors grow, how the new rows are initialized, what learns, which calls are an error.

Seven families of transformers, random and small, and tokenizers trained on a few lines: nothing is downloaded.
"""

from __future__ import annotations

import copy
import linecache
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

NEW = ["<tool>", "</tool>"]
TEXT = ["the cat sat on the mat", "call the tool and use it", "ice melts in spring, snow < 3 weeks / year >"]


def make_tokenizer() -> Any:
    """Byte-level BPE, as in GPT-2 and Llama 3: every text has pieces."""
    bytewise = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.pre_tokenizer, plain.decoder = bytewise, tokenizers.decoders.ByteLevel()
    plain.train_from_iterator(
        TEXT,
        tokenizers.trainers.BpeTrainer(
            vocab_size=290,
            initial_alphabet=bytewise.alphabet(),
            special_tokens=["<pad>", "<s>", "</s>"],
            show_progress=False,
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def make_wordpiece() -> Any:
    """Lower-case WordPiece with an unknown token, as in BERT."""
    plain = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    plain.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    plain.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=60, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    plain.train_from_iterator(TEXT, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")


def make_unigram() -> Any:
    """Unigram pieces that mark the space before a word, as in T5 and Gemma."""
    plain = tokenizers.Tokenizer(tokenizers.models.Unigram())
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    plain.train_from_iterator(TEXT, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>")


SIZES = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = SIZES | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 40,
}


def _llama(v: int, tied: bool = True) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=v, **DECODER, tie_word_embeddings=tied))


def _llama_untied(v: int) -> Any:
    return _llama(v, tied=False)


def _gemma2(v: int) -> Any:
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(vocab_size=v, **DECODER))


def _gpt2(v: int) -> Any:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=v, **SIZES, **sizes))


def _gptj(v: int) -> Any:
    """Untied, with a bias in the head."""
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40, "rotary_dim": 4}
    return transformers.GPTJForCausalLM(transformers.GPTJConfig(vocab_size=v, **SIZES, **sizes))


def _t5(v: int) -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=v, **SIZES, **sizes))


def _bart(v: int) -> Any:
    """With a bias on the logits that is a buffer."""
    sizes = {"d_model": 16, "max_position_embeddings": 40, "decoder_start_token_id": 2}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(vocab_size=v, **SIZES, **sizes))


def _bert(v: int) -> Any:
    """With a tied head whose bias has two names."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=v, pad_token_id=0, max_position_embeddings=40, **sizes)
    )


def _llava(v: int) -> Any:
    """The configuration of its language model is nested in its own."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = transformers.LlamaConfig(vocab_size=v, **DECODER)
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=v - 1)
    )


MAKERS: dict[str, Callable[[int], Any]] = {
    "llama": _llama,
    "llama-untied": _llama_untied,
    "gemma2": _gemma2,
    "gpt2": _gpt2,
    "gptj": _gptj,
    "t5": _t5,
    "bart": _bart,
    "bert": _bert,
    "llava": _llava,
}
UNTIED = {"llama-untied", "gptj", "llava"}
BIAS = {"gptj", "bert"}


def make(family: str, v: int) -> Any:
    """Return a model of `v` rows with nonzero biases, in eval mode, so that a copy gives the same output."""
    torch.manual_seed(0)
    model = MAKERS[family](v).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


@pytest.fixture(params=MAKERS, ids=str)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def plain(family: str, tokenizer: Any) -> Any:
    return make(family, len(tokenizer))


def batch_of(tokenizer: Any) -> dict[str, Tensor]:
    """Sentences with new tokens and without."""
    texts = ["the cat <tool>use it</tool> on", "snow melts", "<tool><tool>the mat"]
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False))
    return batch | {"labels": batch["input_ids"].flip(1)}


def tensors(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def table(model: Any) -> Tensor:
    return model.get_input_embeddings().weight.detach().clone()


def head(model: Any) -> Any:
    return model.get_output_embeddings()


def train(model: Any, plan: fl.Plan, batch: dict[str, Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


# Which tensors grow


def test_the_table_the_head_and_the_configuration_grow(plain: Any, family: str, tokenizer: Any) -> None:
    v = len(tokenizer)
    fl.add_tokens(plain, tokenizer, NEW)
    assert len(tokenizer) == v + 2
    assert tokenizer.convert_tokens_to_ids(NEW) == [v, v + 1]
    embedding = plain.get_input_embeddings()
    assert embedding.weight.shape[0] == embedding.num_embeddings == v + 2
    assert head(plain).weight.shape[0] == head(plain).out_features == v + 2
    assert plain.config.get_text_config().vocab_size == v + 2
    assert (head(plain).weight.learned is embedding.weight.learned) == (family not in UNTIED)
    assert (head(plain).bias is not None) == (family in BIAS)
    if family in BIAS:
        assert len(head(plain).bias) == v + 2
    with torch.no_grad():
        assert plain(**batch_of(tokenizer)).logits.shape[-1] == v + 2


def test_old_tokens_keep_their_logits_to_the_bit(plain: Any, tokenizer: Any) -> None:
    v = len(tokenizer)
    before = copy.deepcopy(plain)
    batch = dict(tokenizer(["the cat sat"], return_tensors="pt", return_token_type_ids=False))
    batch |= {"labels": batch["input_ids"]}
    fl.add_tokens(plain, tokenizer, NEW)
    with torch.no_grad():
        old, new = before(**batch).logits, plain(**batch).logits
    torch.testing.assert_close(new[..., :v], old, atol=1e-6, rtol=1e-6)
    assert torch.equal(table(plain)[:v], table(before))


def test_modules_parameters_and_hooks_stay_the_same_objects(plain: Any, tokenizer: Any) -> None:
    modules, parameters = list(plain.modules()), list(plain.parameters())
    fired: list[str] = []
    for name, module in plain.named_modules():
        if isinstance(module, nn.Embedding | nn.Linear) and len(module.weight) == len(tokenizer):
            module.register_forward_hook(lambda *_, name=name: fired.append(name))
    with torch.no_grad():
        plain(**batch_of(tokenizer))
    expected, fired[:] = list(fired), []
    assert len(expected) >= 2
    fl.add_tokens(plain, tokenizer, NEW)
    assert all(a is b for a, b in zip(plain.modules(), modules, strict=True))
    assert {id(p) for p in parameters} <= {id(p) for p in plain.parameters()}
    with torch.no_grad():
        plain(**batch_of(tokenizer))
    assert fired == expected


def test_only_the_new_rows_learn_and_the_rest_keeps_every_bit_under_decay(
    plain: Any, family: str, tokenizer: Any
) -> None:
    v = len(tokenizer)
    plan = fl.add_tokens(plain, tokenizer, NEW)
    before = tensors(plain)
    train(plain, plan, batch_of(tokenizer))
    after = tensors(plain)
    grown = {name for name in before if before[name].shape[:1] == (v + 2,)}
    assert len(grown) >= 2
    for name in before:
        frozen = slice(0, v) if name in grown else slice(None)
        assert torch.equal(after[name][frozen], before[name][frozen]), name
    for name in grown:
        assert (after[name][v:] != before[name][v:]).all(dim=tuple(range(1, before[name].ndim))).any(), name
    width = table(plain).shape[1]
    tables = 1 + (family in UNTIED)
    assert plan.learned == 2 * (width * tables + (family in BIAS))


def test_gradients_are_the_rows_of_the_dense_gradient(plain: Any, tokenizer: Any) -> None:
    v = len(tokenizer)
    fl.add_tokens(plain, tokenizer, NEW)
    dense = copy.deepcopy(plain)
    fl.merge(dense)
    batch = batch_of(tokenizer)
    for model in (plain, dense):
        model(**batch).loss.backward()
    assert dense.get_input_embeddings().weight.grad[v:].abs().max() > 0
    for module in ("get_input_embeddings", "get_output_embeddings"):
        expected = getattr(dense, module)()
        got = getattr(plain, module)()
        torch.testing.assert_close(got.weight.grad, expected.weight.grad[v:], atol=1e-6, rtol=1e-5)
        if getattr(expected, "bias", None) is not None:
            torch.testing.assert_close(got.bias.grad, expected.bias.grad[v:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gptj"], indirect=True)
def test_under_torch_compile_the_gradients_are_those_of_eager(plain: Any, family: str, tokenizer: Any) -> None:
    """gptj has three partial tensors: the table, the head's weight and the head's bias."""
    fl.add_tokens(plain, tokenizer, NEW)
    eager, batch = copy.deepcopy(plain), batch_of(tokenizer)
    torch.compiler.reset()
    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    for model in (compiled, eager):
        model(**batch).loss.backward()
    mine, theirs = ([p.grad for p in model.parameters() if p.requires_grad] for model in (plain, eager))
    assert len(mine) == len(theirs) == (3 if family == "gptj" else 1)
    for a, b in zip(mine, theirs, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_generate_works_and_can_produce_a_new_token(plain: Any, family: str, tokenizer: Any) -> None:
    if family == "bert":
        pytest.skip("BERT does not generate")
    plan = fl.add_tokens(plain, tokenizer, NEW)
    with torch.no_grad():
        for parameter in plan.parameters():
            parameter.mul_(100)
    prompt = tokenizer(["the cat"], return_tensors="pt", return_token_type_ids=False)
    ids = plain.generate(**prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    merged = copy.deepcopy(plain)
    fl.merge(merged)
    assert torch.equal(ids, merged.generate(**prompt, max_new_tokens=8, do_sample=False, eos_token_id=None))


def test_a_merged_model_goes_through_save_and_from_pretrained(
    plain: Any, family: str, tokenizer: Any, tmp_path: Path
) -> None:
    classes = [type(module) for module in plain.modules()]
    plan = fl.add_tokens(plain, tokenizer, NEW, pad_to_multiple_of=16)
    train(plain, plan, batch_of(tokenizer))
    fl.merge(plain)
    assert [type(module) for module in plain.modules()] == classes
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    opened = type(plain).from_pretrained(tmp_path)
    mine, theirs = tensors(plain), tensors(opened)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    tied = opened.get_output_embeddings().weight is opened.get_input_embeddings().weight
    assert tied == (family not in UNTIED)
    known = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert known.convert_tokens_to_ids(NEW) == tokenizer.convert_tokens_to_ids(NEW)


@pytest.mark.parametrize("tied", [True, False])
def test_merged_shards_load_as_a_plain_model(tokenizer: Any, tied: bool, tmp_path: Path) -> None:
    model = make("llama" if tied else "llama-untied", len(tokenizer))
    plan = fl.add_tokens(model, tokenizer, NEW)
    train(model, plan, batch_of(tokenizer))
    fl.merge(model)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, tensors(opened)[name]) for name, value in tensors(model).items())
    with torch.no_grad():
        assert torch.equal(opened(**batch_of(tokenizer)).logits, model(**batch_of(tokenizer)).logits)


def test_a_partial_model_saves_what_a_plain_one_would(plain: Any, tokenizer: Any, tmp_path: Path) -> None:
    plan = fl.add_tokens(plain, tokenizer, NEW)
    train(plain, plan, batch_of(tokenizer))
    plain.save_pretrained(tmp_path)
    opened = type(plain).from_pretrained(tmp_path)
    assert torch.equal(table(opened), table(plain))
    with torch.no_grad():
        a, b = opened(**batch_of(tokenizer)).logits, plain(**batch_of(tokenizer)).logits
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_learned_rows_load_onto_a_fresh_base_model(plain: Any, family: str, tokenizer: Any, tmp_path: Path) -> None:
    v = len(tokenizer)
    fresh = copy.deepcopy(plain)
    plan = fl.add_tokens(plain, tokenizer, NEW, pad_to_multiple_of=16)
    started = table(plain)
    train(plain, plan, batch_of(tokenizer))
    fl.save_learned(plain, tmp_path / "tokens.safetensors")
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokens.safetensors").stat().st_size < 4_000
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    fl.add_tokens(fresh, saved, NEW, pad_to_multiple_of=16)  # it knows them; the model does not
    assert torch.equal(table(fresh), started)
    fl.load_learned(fresh, tmp_path / "tokens.safetensors")  # it would warn if the rest differed
    mine, theirs = tensors(plain), tensors(fresh)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not torch.equal(theirs[next(iter(theirs))], started)
    assert len(table(fresh)) > v + 2


# How the new rows are initialized


@pytest.mark.parametrize("tokenize", [make_tokenizer, make_wordpiece, make_unigram])
@pytest.mark.parametrize("known_before", [False, True], ids=["new", "already in the tokenizer"])
def test_a_token_starts_at_the_mean_of_its_pieces(tokenize: Callable[[], Any], known_before: bool) -> None:
    tokenizer = tokenize()
    pieces = [tokenizer(text, add_special_tokens=False).input_ids for text in ("<tool>", "The Cat")]
    pieces = [[i for i in ids if i != tokenizer.unk_token_id] for ids in pieces]
    assert all(len(set(ids)) > 1 for ids in pieces)
    assert pieces[0] != pieces[1]
    model = make("llama-untied", len(tokenizer))
    v, before, head_before = len(tokenizer), table(model), head(model).weight.detach().clone()
    if known_before:
        tokenizer.add_tokens(["<tool>", "The Cat"])
    fl.add_tokens(model, tokenizer, ["<tool>", "The Cat"])
    for row, ids in enumerate(pieces):
        assert torch.equal(table(model)[v + row], before[ids].mean(0))
        assert torch.equal(head(model).weight.detach().clone()[v + row], head_before[ids].mean(0))


def test_a_token_of_unknown_pieces_starts_at_the_mean_of_all_rows() -> None:
    tokenizer = make_wordpiece()
    assert set(tokenizer("漢字", add_special_tokens=False).input_ids) == {tokenizer.unk_token_id}
    model = make("llama", len(tokenizer))
    before = table(model)
    fl.add_tokens(model, tokenizer, ["漢字"])
    assert torch.equal(table(model)[-1], before.mean(0))


def test_init_mean_starts_at_the_mean_of_table_head_and_bias(plain: Any, tokenizer: Any) -> None:
    before, after_head = table(plain), head(plain)
    head_before = after_head.weight.detach().clone()
    bias_before = None if after_head.bias is None else after_head.bias.detach().clone()
    fl.add_tokens(plain, tokenizer, NEW, init="mean")
    assert torch.equal(table(plain)[-2:], before.mean(0).expand(2, -1))
    assert torch.equal(head(plain).weight.detach().clone()[-2:], head_before.mean(0).expand(2, -1))
    if bias_before is not None:
        assert torch.equal(head(plain).bias.detach().clone()[-2:], bias_before.mean().expand(2))


def test_given_values_are_taken_in_the_order_of_the_tokens(tokenizer: Any) -> None:
    model = make("llama-untied", len(tokenizer))
    values = torch.randn(3, 16)
    pieces = tokenizer("<tool>", add_special_tokens=False).input_ids
    expected = head(model).weight[pieces].mean(0)
    (cat,) = tokenizer("cat", add_special_tokens=False).input_ids
    head_of_cat = head(model).weight[cat].clone()
    fl.add_tokens(model, tokenizer, ["<tool>", "cat", "</tool>"], init=values)
    ids = tokenizer.convert_tokens_to_ids(["<tool>", "cat", "</tool>"])
    assert torch.equal(model.get_input_embeddings().weight.learned.detach(), values)
    assert torch.equal(table(model)[ids], values)
    assert torch.equal(head(model).weight.detach().clone()[ids[0]], expected)
    assert torch.equal(head(model).weight.detach().clone()[cat], head_of_cat)


def test_the_same_call_gives_the_same_bits_and_draws_no_random_number(plain: Any, tokenizer: Any) -> None:
    twin, other = copy.deepcopy(plain), copy.deepcopy(tokenizer)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fl.add_tokens(plain, tokenizer, NEW, pad_to_multiple_of=32)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    fl.add_tokens(twin, other, NEW, pad_to_multiple_of=32)
    mine, theirs = tensors(plain), tensors(twin)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# Which rows there are


def test_padding_rows_hold_the_mean_and_are_frozen(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama", v)
    mean = table(model).mean(0)
    plan = fl.add_tokens(model, tokenizer, NEW, pad_to_multiple_of=64)
    size = -(-(v + 2) // 64) * 64
    assert size > v + 2
    assert len(table(model)) == model.config.vocab_size == size
    assert torch.equal(table(model)[v + 2 :], mean.expand(size - v - 2, -1))
    before = table(model)
    train(model, plan, batch_of(tokenizer))
    moved = (table(model) != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == [v, v + 1]


def test_a_table_with_spare_rows_is_not_enlarged(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama-untied", v + 53)
    before, pieces = table(model), tokenizer("<tool>", add_special_tokens=False).input_ids
    parameter = model.get_input_embeddings().weight
    plan = fl.add_tokens(model, tokenizer, NEW)
    assert model.config.vocab_size == len(table(model)) == len(head(model).weight) == v + 53
    assert model.get_input_embeddings().weight.frozen is parameter
    assert torch.equal(table(model)[v], before[pieces].mean(0))  # the row was there, the token was not
    others = [i for i in range(v + 53) if i not in (v, v + 1)]
    assert torch.equal(table(model)[others], before[others])
    assert plan.learned == 2 * 16 * 2


def test_a_table_with_too_few_spare_rows_grows_by_the_rest(tokenizer: Any, tmp_path: Path) -> None:
    v = len(tokenizer)
    base = make("bert", v + 1)
    model = copy.deepcopy(base)
    plan = fl.add_tokens(model, tokenizer, NEW)
    assert len(table(model)) == v + 2
    train(model, plan, batch_of(tokenizer))
    fl.save_learned(model, tmp_path / "tokens.safetensors")
    fl.add_tokens(base, tokenizer, NEW)
    fl.load_learned(base, tmp_path / "tokens.safetensors")
    assert torch.equal(table(base), table(model))


def test_tokens_that_exist_are_not_added_and_start_from_their_values(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama", v)
    before = table(model)
    plan = fl.add_tokens(model, tokenizer, ["cat", "<tool>", "</s>"])
    assert len(tokenizer) == len(table(model)) == v + 1
    ids = tokenizer.convert_tokens_to_ids(["cat", "<tool>", "</s>"])
    assert torch.equal(table(model)[:v], before)
    (learned,) = plan.parameters()
    assert torch.equal(learned, table(model)[ids])
    assert tokenizer("cat", add_special_tokens=False).input_ids == [ids[0]]


def test_more_tokens_later_after_a_merge_and_again_without_one(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama", v)
    plan = fl.add_tokens(model, tokenizer, ["<tool>"])
    train(model, plan, batch_of(tokenizer))
    learned = table(model)[v]
    with pytest.raises(fl.PartialTensorError, match=r"learns in part.*Call fl\.merge\(model\) first"):
        fl.add_tokens(model, tokenizer, ["</tool>"])
    assert len(tokenizer) == v + 1
    fl.merge(model)
    fl.add_tokens(model, tokenizer, ["<tool>", "</tool>"])
    assert torch.equal(table(model)[v], learned)
    plan = fl.add_tokens(model, tokenizer, ["</tool>"])  # both are there: which one learns can change without a merge
    assert plan.learned == 16
    assert torch.equal(table(model)[v], learned)


def test_given_values_are_written_to_a_row_that_already_learns(tokenizer: Any) -> None:
    model = make("llama", len(tokenizer))
    fl.add_tokens(model, tokenizer, NEW)
    fl.add_tokens(model, tokenizer, NEW, init=torch.full((2, 16), 7.0))
    assert torch.equal(model.get_input_embeddings().weight.learned, torch.full((2, 16), 7.0))


def test_special_tokens_are_omitted_when_decoding_and_ordinary_ones_are_not(tokenizer: Any, tmp_path: Path) -> None:
    model = make("llama", len(tokenizer))
    fl.add_tokens(model, tokenizer, ["<tool>"])
    fl.add_tokens(copy.deepcopy(make("llama", len(tokenizer))), tokenizer, ["<hidden>"], special=True)
    ids = tokenizer("cat<tool><hidden>", add_special_tokens=False).input_ids
    assert len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "cat<tool>"
    tokenizer.save_pretrained(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert saved.decode(ids, skip_special_tokens=True) == "cat<tool>"


def test_added_token_objects_are_accepted(tokenizer: Any) -> None:
    model = make("llama", len(tokenizer))
    token = transformers.AddedToken("<tool>", lstrip=True)
    fl.add_tokens(model, tokenizer, [token])
    (row,) = tokenizer.convert_tokens_to_ids(["<tool>"])
    assert tokenizer("cat  <tool>", add_special_tokens=False).input_ids[-1] == row
    assert tokenizer.decode(tokenizer("cat  <tool>", add_special_tokens=False).input_ids) == "cat<tool>"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_a_half_precision_table_learn_in_float32(dtype: torch.dtype, tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama-untied", v).to(dtype)
    plan = fl.add_tokens(model, tokenizer, NEW)
    assert table(model).dtype == dtype
    assert {parameter.dtype for parameter in plan.parameters()} == {torch.float32}
    (learned, _), before = plan.parameters(), table(model)
    start = learned.detach().clone()
    optimizer = torch.optim.AdamW([learned], lr=1e-5, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch_of(tokenizer)).loss.backward()
        optimizer.step()
    assert (learned != start).any(dim=1).all()  # a step that the table's own dtype would round away
    assert torch.equal(table(model)[:v], before[:v])


def test_a_double_table_learns_in_double(tokenizer: Any) -> None:
    plan = fl.add_tokens(make("llama", len(tokenizer)).double(), tokenizer, NEW)
    assert {parameter.dtype for parameter in plan.parameters()} == {torch.float64}


# What else learns


def test_also_lets_other_tensors_learn(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama-untied", v)
    plan = fl.add_tokens(model, tokenizer, NEW, also={"*norm.weight": fl.everything, "lm_head.weight": fl.everything})
    learns = {line.name: line.learns for line in plan.lines if line.learned}
    assert learns["model.embed_tokens.weight"] == "rows"
    assert learns["lm_head.weight"] == learns["model.norm.weight"] == "everything"
    assert "model.layers.0.mlp.up_proj.weight" not in learns


def test_everything_may_learn_besides_the_new_rows(tokenizer: Any) -> None:
    model = make("llama", len(tokenizer))
    plan = fl.add_tokens(model, tokenizer, NEW, also={"*": fl.everything})
    learns = {line.name: line.learns for line in plan.lines}
    assert learns.pop("model.embed_tokens.weight") == "rows"
    assert set(learns.values()) == {"everything"}


# Which calls are an error


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"tokens": "<tool>"}, TypeError, "tokens: expected a list of strings, such as ['<tool>'], got '<tool>'."),
        ({"tokens": []}, fl.SelectionError, "tokens: the list is empty"),
        ({"tokens": ["<a>", ""]}, fl.SelectionError, "tokens: expected strings of one character or more, got ''."),
        ({"tokens": ["<a>", 3]}, fl.SelectionError, "tokens: expected strings of one character or more, got 3."),
        ({"tokens": ["<a>", "<b>", "<a>"]}, fl.SelectionError, "tokens: listed more than once: '<a>'"),
        ({"tokens": ["<a>", "<pad>"]}, fl.SelectionError, "tokens: '<pad>' is the padding token"),
        ({"init": "ones"}, fl.SelectionError, "init: 'ones' is not known. Pass 'subwords', 'mean'"),
        ({"init": torch.zeros(1, 16)}, fl.SelectionError, "init: shape (1, 16). Pass shape (2, 16)"),
        ({"init": torch.full((2, 16), torch.nan)}, fl.SelectionError, "init: holds NaN or Inf"),
        ({"init": [[0.0] * 16] * 2}, fl.SelectionError, "is not known. Pass 'subwords', 'mean', 'normal'"),
        ({"init": torch.zeros(2, 15)}, fl.SelectionError, "init: shape (2, 15). Pass shape (2, 16)"),
        ({"pad_to_multiple_of": 0}, fl.SelectionError, "expected an integer of 1 or more, or None, got 0."),
        ({"pad_to_multiple_of": 8.0}, fl.SelectionError, "expected an integer of 1 or more, or None, got 8.0."),
    ],
)
def test_bad_arguments_name_the_value_and_change_nothing(
    arguments: dict[str, Any], error: type[Exception], says: str, tokenizer: Any
) -> None:
    v = len(tokenizer)
    model = make("llama", v)
    with pytest.raises(error, match=re.escape(says)):
        fl.add_tokens(model, tokenizer, **({"tokens": NEW} | arguments))
    assert len(tokenizer) == len(table(model)) == v
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_values_beyond_the_range_of_the_tables_dtype_are_an_error(tokenizer: Any) -> None:
    model = make("llama", len(tokenizer)).half()
    with pytest.raises(fl.SelectionError, match=re.escape("init: holds NaN or Inf in torch.float16")):
        fl.add_tokens(model, tokenizer, NEW, init=torch.full((2, 16), 1e6))
    fl.add_tokens(model, tokenizer, NEW, init=torch.full((2, 16), 6e4))
    assert table(model)[-2:].eq(6e4).all()


def test_a_model_without_an_input_embedding_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(TypeError, match=re.escape("model: a Linear has no get_input_embeddings()")):
        fl.add_tokens(nn.Linear(2, 2), tokenizer, NEW)


def test_a_processor_in_place_of_a_tokenizer_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(TypeError, match=re.escape("tokenizer: a object has no get_vocab()")):
        fl.add_tokens(make("llama", len(tokenizer)), object(), NEW)


def test_a_head_of_another_size_is_an_error(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama-untied", v)
    model.lm_head = nn.Linear(16, v - 3, bias=False)
    with pytest.raises(fl.PartialTensorError, match=f"lm_head.weight has {v - 3} rows and .*embed_tokens.weight {v}"):
        fl.add_tokens(model, tokenizer, NEW)
    assert len(tokenizer) == v


def test_a_second_table_over_the_same_tokens_is_an_error(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama", v)
    model.model.embed_tokens_per_layer = nn.Embedding(v, 4)
    with pytest.raises(fl.PartialTensorError, match=r"model.embed_tokens_per_layer has a row for each token too"):
        fl.add_tokens(model, tokenizer, NEW)
    assert len(tokenizer) == v


def test_a_quantized_head_is_an_error(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama-untied", v)
    model.lm_head.weight = nn.Parameter(torch.zeros(v, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(fl.PartialTensorError, match="lm_head is quantized in a form that cannot be read"):
        fl.add_tokens(model, tokenizer, NEW)
    assert len(tokenizer) == len(table(model)) == v


def test_an_offloaded_table_is_an_error(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama", v).to("meta")
    with pytest.raises(fl.PartialTensorError, match="from quantization, offloading"):
        fl.add_tokens(model, tokenizer, NEW)
    assert len(tokenizer) == v


def test_a_head_without_a_row_for_a_known_token_is_an_error(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama-untied", v)
    model.lm_head = nn.Linear(16, v - 1, bias=False)
    with pytest.raises(fl.PartialTensorError, match=f"lm_head.weight has {v - 1} rows"):
        fl.add_tokens(model, tokenizer, ["cat"])


class BytesTokenizer:
    """A tokenizer without the tokenizers library: a token for each letter, and upper case is not kept."""

    unk_token_id = None

    def __init__(self, gap: int = 0) -> None:
        self.known, self.gap = {chr(i): i for i in range(123)}, gap

    def __len__(self) -> int:
        return len(self.known)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.known)

    def add_tokens(self, tokens: list[str], special_tokens: bool = False) -> None:
        for token in tokens:
            self.known.setdefault(token.lower(), len(self.known) + self.gap)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [self.known[text]] if text in self.known else [self.known[c] for c in text]}


def test_any_tokenizer_with_the_same_methods_works() -> None:
    model, tokenizer = make("llama", 123), BytesTokenizer()
    before = table(model)
    fl.add_tokens(model, tokenizer, ["tool", "the cat"])
    assert torch.equal(table(model)[123], before[[ord(c) for c in "tool"]].mean(0))
    assert torch.equal(table(model)[124], before[[ord(c) for c in "the cat"]].mean(0))


def test_a_token_whose_pieces_are_not_known_starts_at_the_mean() -> None:
    model, tokenizer = make("llama", 123), BytesTokenizer()
    tokenizer.add_tokens(["tool"])  # from now on it is one piece, without a row
    before = table(model)
    fl.add_tokens(model, tokenizer, ["tool"])
    assert torch.equal(table(model)[123], before.mean(0))


def test_a_tokenizer_that_leaves_ids_out_gets_a_row_for_each() -> None:
    model = make("llama", 123)
    plan = fl.add_tokens(model, BytesTokenizer(gap=4), ["tool"])
    assert len(table(model)) == model.config.vocab_size == 128
    assert torch.equal(plan.parameters()[0][0], table(model)[127])


def test_a_token_that_the_tokenizer_changes_is_an_error() -> None:
    model, tokenizer = make("llama", 123), BytesTokenizer()
    with pytest.raises(fl.SelectionError, match="tokens: the tokenizer does not keep 'AT' as written"):
        fl.add_tokens(model, tokenizer, ["AT"])
    assert len(table(model)) == 123


def whole_state(model: Any, tokenizer: Any) -> tuple[Any, ...]:
    """Return all that adding tokens changes: values as bits, identities, sizes, and the tokenizer's vocabulary."""
    values = {name: value.detach().clone().view(torch.uint8) for name, value in model.state_dict().items()}
    parameters = [(name, id(p), p.requires_grad, p.shape, id(p.grad)) for name, p in model.named_parameters()]
    modules = [(type(m), sorted(vars(m)), [vars(m).get(name) for name in SIZE_NAMES]) for m in model.modules()]
    written = tokenizer.backend_tokenizer.to_str() if hasattr(tokenizer, "backend_tokenizer") else vars(tokenizer)
    return values, parameters, modules, repr(model.config), copy.deepcopy(written), len(tokenizer.get_vocab())


SIZE_NAMES = ("num_embeddings", "out_features", "vocab_size", "decoder_vocab_size", "training")


def assert_same_state(now: tuple[Any, ...], before: tuple[Any, ...]) -> None:
    assert now[0].keys() == before[0].keys()
    assert all(torch.equal(now[0][name], value) for name, value in before[0].items())
    assert now[1:] == before[1:]


def interrupted(call: Callable[[], Any], line: int) -> bool:
    """Call `call`, and raise KeyboardInterrupt at the given line that runs in the package; return whether it was."""
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        file = frame.f_code.co_filename
        if not file.startswith(FOLDER) or "rollback" in file or "restore" in frame.f_code.co_name:
            return None
        # Not at the line of a `with`, which is also run when its block ends: Python would not call `__exit__`. Nor,
        # from Python 3.12 on, at the end of a list comprehension in its block.
        text = linecache.getline(file, frame.f_lineno).strip()
        if event == "line" and not text.startswith(("with ", ")", "before = [")):
            count += 1
            if count == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


FOLDER = str(Path(fl.__file__).parent)
LINES = 61 if "FROSTLINE_SOAK" in os.environ else 151
ADDITIONS: dict[str, tuple[str, int, dict[str, Any], bool]] = {
    "a tied table grows": ("llama", 0, {"special": True}, False),
    "table, head and its bias grow": ("gptj", 0, {"init": torch.ones(2, 16)}, False),
    "a bias on the logits grows": ("bart", 0, {"pad_to_multiple_of": 64}, False),
    "spare rows are used": ("llama-untied", 5, {}, False),
    "rows learn already": ("llama-untied", 5, {"init": torch.ones(2, 16)}, True),
}


@pytest.mark.parametrize(("family", "spare", "how", "planned"), ADDITIONS.values(), ids=ADDITIONS.keys())
def test_interrupted_at_any_line_model_and_tokenizer_are_as_they_were(
    family: str, spare: int, how: dict[str, Any], planned: bool, tokenizer: Any
) -> None:
    model = make(family, len(tokenizer) + spare)
    model(**batch_of(tokenizer)).loss.backward()
    if planned:
        fl.train_only(model, {"*embed_tokens.weight": fl.rows([1, len(tokenizer)]), "lm_head.weight": fl.rows([2])})
        with torch.no_grad():
            model.get_input_embeddings().weight.learned.add_(1)
    before, line = whole_state(model, tokenizer), 1
    while interrupted(lambda: fl.add_tokens(model, tokenizer, NEW, **how), line):
        assert_same_state(whole_state(model, tokenizer), before)
        line += 1 if line < 12 else LINES
    assert line > 300  # the last round was not interrupted, and added the tokens
    assert len(tokenizer.get_vocab()) == before[-1] + 2
    twin, words = make(family, before[-1] + spare), make_tokenizer()
    assert tokenizer("the <tool> sat").input_ids != words("the <tool> sat").input_ids
    ids = [tokenizer.get_vocab()[token] for token in NEW]
    learned = model.get_input_embeddings().weight.detach()[ids]
    fl.add_tokens(twin, words, NEW, **how)
    assert words.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    if not planned:
        assert torch.equal(twin.get_input_embeddings().weight.detach()[ids], learned)


def test_a_pattern_without_a_match_is_an_error_that_changes_nothing(tokenizer: Any) -> None:
    model = make("llama", len(tokenizer))
    model(**batch_of(tokenizer)).loss.backward()
    before = whole_state(model, tokenizer)
    assert model.get_input_embeddings().weight.grad is not None
    with pytest.raises(fl.PatternError, match="'\\*lora_\\*' matches no parameter"):
        fl.add_tokens(model, tokenizer, NEW, also={"*lora_*": fl.everything})
    assert_same_state(whole_state(model, tokenizer), before)
    fl.add_tokens(model, tokenizer, NEW)
    assert len(table(model)) == len(tokenizer) == before[-1] + 2
    assert model.get_input_embeddings().weight.grad is None  # the old one has too few rows


def test_a_tokenizer_in_python_is_as_it_was_after_an_error() -> None:
    model, tokenizer = make("llama", 123), BytesTokenizer()
    tokenizer.lock = threading.Lock()  # cannot be copied
    before, sizes = dict(tokenizer.known), whole_state(model, BytesTokenizer())
    with pytest.raises(fl.SelectionError, match="does not keep 'AT' as written"):
        fl.add_tokens(model, tokenizer, ["tool", "AT"])
    assert tokenizer.known == before
    assert_same_state(whole_state(model, BytesTokenizer()), sizes)
    fl.add_tokens(model, tokenizer, ["tool"])
    assert tokenizer.known == before | {"tool": 123}


def test_a_tokenizer_with_a_part_in_python_that_cannot_be_saved_still_gets_tokens() -> None:
    class Words:
        def pre_tokenize(self, pretokenized: Any) -> None:
            pretokenized.split(lambda _, text: [text])

    tokenizer = make_tokenizer()
    size = len(tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.PreTokenizer.custom(Words())
    with pytest.raises(Exception, match="Custom PreTokenizer"):
        tokenizer.backend_tokenizer.to_str()
    model = make("llama", size)
    assert fl.add_tokens(model, tokenizer, NEW, init="mean").learned == 2 * 16
    assert len(tokenizer) == len(table(model)) == size + 2


def test_a_configuration_with_another_size_is_updated_too(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = make("llama", v + 6)
    model.config.vocab_size = v + 1
    fl.add_tokens(model, tokenizer, NEW, pad_to_multiple_of=100)
    assert model.config.vocab_size == len(table(model)) == -(-(v + 6) // 100) * 100


def test_a_model_inside_ddp_is_an_error(tokenizer: Any) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(make("llama", len(tokenizer)))
        with pytest.raises(fl.PartialTensorError, match="Call train_only first"):
            fl.add_tokens(wrapped, tokenizer, NEW)
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_without_a_head_learns_its_table(tokenizer: Any) -> None:
    model = make("llama", len(tokenizer)).model
    plan = fl.add_tokens(model, tokenizer, NEW)
    assert plan.learned == 2 * 16


def test_both_vocabulary_sizes_of_marian_are_updated(tokenizer: Any) -> None:
    v = len(tokenizer)
    sizes = {"d_model": 16, "max_position_embeddings": 40, "decoder_start_token_id": 0}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
    model = transformers.MarianMTModel(transformers.MarianConfig(vocab_size=v, **(SIZES | sizes)))
    plan = fl.add_tokens(model, tokenizer, NEW)
    assert model.config.vocab_size == model.config.decoder_vocab_size == v + 2
    before = table(model)
    train(model, plan, batch_of(tokenizer))
    assert (table(model) != before).any(dim=1).nonzero().flatten().tolist() == [v, v + 1]


RELOAD = """
import sys, torch, transformers, frostline as fl
folder = sys.argv[1]
model = transformers.LlamaForCausalLM.from_pretrained(f"{folder}/base")
tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/tuned")
fl.add_tokens(model, tokenizer, ["<tool>", "</tool>"])
fl.load_learned(model, f"{folder}/tuned/tokens.safetensors")
fl.merge(model)
batch = tokenizer("the <tool>cat</tool>", return_tensors="pt", return_token_type_ids=False)
print(repr(model(**batch).logits.sum().item()))
"""


def test_another_process_loads_the_base_model_and_the_learned_rows(tokenizer: Any, tmp_path: Path) -> None:
    make("llama", len(tokenizer)).save_pretrained(tmp_path / "base")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    plan = fl.add_tokens(model, tokenizer, NEW)
    train(model, plan, batch_of(tokenizer))
    tokenizer.save_pretrained(tmp_path / "tuned")
    fl.save_learned(model, tmp_path / "tuned" / "tokens.safetensors")
    fl.merge(model)
    batch = tokenizer("the <tool>cat</tool>", return_tensors="pt", return_token_type_ids=False)
    expected = model(**batch).logits.sum().item()
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:frostline", "-c", RELOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) == expected
