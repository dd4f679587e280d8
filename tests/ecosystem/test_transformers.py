"""Language models of transformers, of which a few rows of the (tied) embedding learn: nothing else about them changes.

Six families, random small configurations: three tie the embedding to the head under one name each, T5 and BART use it
in up to four places, Gemma 2 scales it in a forward of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import frostline as fl

transformers = pytest.importorskip("transformers")

V, ROWS = 120, [7, 3, 100, 119]
SHARED_SIZES = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _decoder_sizes() -> dict[str, Any]:
    return SHARED_SIZES | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }


def _gpt2() -> nn.Module:
    sizes = SHARED_SIZES | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def _llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_decoder_sizes(), tie_word_embeddings=True))


def _gemma2() -> nn.Module:
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**_decoder_sizes()))


def _t5() -> nn.Module:
    sizes = SHARED_SIZES | {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, decoder_start_token_id=0, tie_word_embeddings=True)
    )


def _bart() -> nn.Module:
    sizes = SHARED_SIZES | {"d_model": 32, "max_position_embeddings": 64, "decoder_start_token_id": 2}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 64}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes))


def _bert() -> nn.Module:
    sizes = SHARED_SIZES | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return transformers.BertForMaskedLM(
        transformers.BertConfig(**sizes, num_attention_heads=4, max_position_embeddings=64)
    )


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "gemma2": _gemma2,
    "t5": _t5,
    "bart": _bart,
    "bert": _bert,
}


@pytest.fixture(params=MAKERS, ids=str)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def plain(family: str) -> Any:
    """A plain model in eval mode, so that dropout does not tell it from its copy."""
    torch.manual_seed(0)
    return MAKERS[family]().eval()


@pytest.fixture
def batch(family: str) -> dict[str, Tensor]:
    """Ids that learn, ids that do not, and ids that repeat."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, V, (3, 10), generator=generator)
    ids[:, 2:6] = torch.tensor([7, 3, 100, 7])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.flip(1)}


def name_of_table(model: Any) -> str:
    """The name under which `named_parameters` lists the input embedding."""
    table = model.get_input_embeddings().weight
    return next(name for name, parameter in model.named_parameters() if parameter is table)


def make_partial(plain: Any) -> tuple[Any, fl.Plan]:
    partial = copy.deepcopy(plain)
    return partial, fl.train_only(partial, {name_of_table(partial): fl.rows(ROWS)})


def learned_part(partial: Any) -> nn.Parameter:
    (learned,) = [parameter for parameter in partial.parameters() if parameter.requires_grad]
    return learned


def train(partial: Any, plan: fl.Plan, batch: dict[str, Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        partial(**batch).loss.backward()
        optimizer.step()


def table_of(model: Any) -> Tensor:
    return model.get_input_embeddings().weight.detach().clone()


def assert_same_outputs(left: Any, right: Any, batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        a, b = left(**batch), right(**batch)
    torch.testing.assert_close(a.logits, b.logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(a.loss, b.loss, atol=1e-6, rtol=0)


def test_the_head_is_tied_to_the_table(plain: Any) -> None:
    """The guard of this file: without tying, half of it would prove nothing."""
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight


def test_outputs_are_those_of_the_plain_model(plain: Any, batch: dict[str, Tensor]) -> None:
    partial, _ = make_partial(plain)
    assert_same_outputs(plain, partial, batch)
    with torch.no_grad():
        learned_part(partial).neg_()
        assert (plain(**batch).logits - partial(**batch).logits).abs().max() > 1e-2


def test_gradients_are_the_rows_of_the_dense_gradient(plain: Any, batch: dict[str, Tensor]) -> None:
    partial, _ = make_partial(plain)
    plain(**batch).loss.backward()
    partial(**batch).loss.backward()
    dense = plain.get_input_embeddings().weight.grad[ROWS]
    assert dense.abs().min(dim=0).values.max() > 0
    torch.testing.assert_close(learned_part(partial).grad, dense, atol=1e-6, rtol=1e-5)
    assert [p for p in partial.parameters() if p.grad is not None] == [learned_part(partial)]


def modules_that_fire(model: Any, batch: dict[str, Tensor]) -> list[str]:
    """Names of the modules that hold the table, in the order in which their forward hooks fire."""
    table, fired = model.get_input_embeddings(), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.Linear) and module.weight.shape == table.weight.shape:
            module.register_forward_hook(lambda *_, name=name: fired.append(name))
    with torch.no_grad():
        model(**batch)
    return fired


def test_hooks_of_embedding_and_head_fire(plain: Any, batch: dict[str, Tensor]) -> None:
    partial, _ = make_partial(plain)
    fired = modules_that_fire(partial, batch)
    assert fired == modules_that_fire(plain, batch)
    assert isinstance(partial.get_submodule(fired[0]), nn.Embedding)
    assert partial.get_submodule(fired[-1]) is partial.get_output_embeddings()


def test_generate_gives_the_same_tokens(plain: Any, family: str, batch: dict[str, Tensor]) -> None:
    if family == "bert":
        pytest.skip("BERT does not generate")
    partial, _ = make_partial(plain)
    prompt = {name: batch[name][:, :2] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = plain.generate(**prompt, **options)
    assert torch.equal(partial.generate(**prompt, **options), expected)
    with torch.no_grad():
        learned_part(partial).mul_(torch.tensor([[-40.0], [40.0], [-40.0], [40.0]]))
    assert not torch.equal(partial.generate(**prompt, **options), expected)  # what they hold is really used


def test_the_state_dict_has_the_plain_keys_and_the_learned_values(plain: Any, batch: dict[str, Tensor]) -> None:
    partial, plan = make_partial(plain)
    train(partial, plan, batch)
    state, before = partial.state_dict(), plain.state_dict()
    assert list(state) == list(before)
    assert torch.equal(state[name_of_table(plain)][ROWS], learned_part(partial).detach())
    copied = copy.deepcopy(plain)
    copied.load_state_dict(state)
    assert_same_outputs(partial, copied, batch)


def test_a_saved_folder_opens_as_a_plain_model_with_what_was_learned(
    plain: Any, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    partial, plan = make_partial(plain)
    train(partial, plan, batch)
    partial.save_pretrained(tmp_path / "folder")
    opened = type(plain).from_pretrained(tmp_path / "folder")
    assert type(opened) is type(plain)
    assert torch.equal(table_of(opened), table_of(partial))
    assert not torch.equal(table_of(opened), table_of(plain))
    assert opened.get_output_embeddings().weight is opened.get_input_embeddings().weight
    assert_same_outputs(partial, opened, batch)


def test_tie_weights_keeps_the_tie(plain: Any, batch: dict[str, Tensor]) -> None:
    partial, plan = make_partial(plain)
    partial.tie_weights()
    assert partial.get_output_embeddings().weight.learned is partial.get_input_embeddings().weight.learned
    assert learned_part(partial) is plan.parameters()[0]
    assert_same_outputs(plain, partial, batch)
    train(partial, plan, batch)
    assert torch.equal(partial.get_output_embeddings().weight.detach().clone(), table_of(partial))
    assert not torch.equal(table_of(partial), table_of(plain))


def test_a_deep_copy_learns_on_its_own(plain: Any, batch: dict[str, Tensor]) -> None:
    partial, plan = make_partial(plain)
    copied = copy.deepcopy(partial)
    assert_same_outputs(partial, copied, batch)
    assert copied.get_output_embeddings().weight.learned is copied.get_input_embeddings().weight.learned
    train(partial, plan, batch)
    assert torch.equal(table_of(copied), table_of(plain))
    assert not torch.equal(table_of(partial), table_of(plain))


def test_frozen_rows_keep_every_bit_under_decay(plain: Any, batch: dict[str, Tensor]) -> None:
    partial, plan = make_partial(plain)
    train(partial.train(), plan, batch)
    after, before, table = partial.state_dict(), plain.state_dict(), name_of_table(plain)
    kept = torch.ones(V, dtype=torch.bool)
    kept[ROWS] = False
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    tied = {name for name in before if before[name].data_ptr() == before[table].data_ptr()}
    assert moved == tied
    assert torch.equal(after[table][kept], before[table][kept])
    assert (after[table][ROWS] != before[table][ROWS]).any(dim=1).all()


def test_merge_gives_a_plain_model_with_the_same_outputs(plain: Any, batch: dict[str, Tensor]) -> None:
    partial, plan = make_partial(plain)
    train(partial, plan, batch)
    trained = copy.deepcopy(partial)
    fl.merge(partial)
    assert [type(module) for module in partial.modules()] == [type(module) for module in plain.modules()]
    assert [name for name, _ in partial.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(parameter.requires_grad for parameter in partial.parameters())
    assert partial.get_output_embeddings().weight is partial.get_input_embeddings().weight
    assert_same_outputs(trained, partial, batch)


def test_what_was_learned_is_a_small_file(plain: Any, batch: dict[str, Tensor], tmp_path: Path) -> None:
    partial, plan = make_partial(plain)
    train(partial, plan, batch)
    path = tmp_path / "rows.safetensors"
    fl.save_learned(partial, path)
    assert path.stat().st_size < 20_000
    fresh = copy.deepcopy(plain)
    fl.load_learned(fresh, path)
    assert_same_outputs(partial, fresh, batch)
    assert not torch.equal(table_of(fresh), table_of(plain))


def test_resizing_a_partial_table_says_what_to_do(plain: Any, batch: dict[str, Tensor]) -> None:
    partial, _ = make_partial(plain)
    with pytest.raises(fl.PartialTensorError, match=r"call fl\.merge\(model\) first"):
        partial.resize_token_embeddings(V + 4)
    assert_same_outputs(plain, partial, batch)
    fl.merge(partial)
    partial.resize_token_embeddings(V + 4)
    assert partial.get_input_embeddings().weight.shape[0] == V + 4


def test_a_tied_model_from_a_mapped_checkpoint_saves_its_table_once(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")  # its tensors lie in the mapped file
    fl.train_only(model, {"model.embed_tokens.weight": fl.rows([3])})
    with torch.no_grad():
        model.model.embed_tokens.weight_learned.add_(1)
    model.save_pretrained(tmp_path / "tuned")
    saved = load_file(tmp_path / "tuned" / "model.safetensors")
    assert "lm_head.weight" not in saved
    assert torch.equal(saved["model.embed_tokens.weight"], model.model.embed_tokens.weight.detach().clone())
    fl.merge(model)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "tuned")
    ids = torch.tensor([[3, 4]])
    assert torch.equal(again(ids).logits, model(ids).logits)
