"""An exported adapter is loaded by PEFT itself into a fresh base model, and gives the same logits to the bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from .cases import NEW, batch_of, make_gptj, make_llama, make_tokenizer, table, train  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
    "ignore:fan_in_fan_out:UserWarning",
)

SMALL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def gpt2(rows: int) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=rows, n_embd=16, n_layer=1, n_head=2, n_positions=40, **SMALL)
    return transformers.GPT2LMHeadModel(config).eval()


def gemma2(rows: int) -> Any:
    """Its embedding is scaled."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma2Config(
        vocab_size=rows, head_dim=8, num_key_value_heads=1, max_position_embeddings=40, **sizes, **SMALL
    )
    return transformers.Gemma2ForCausalLM(config).eval()


def t5(rows: int) -> Any:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=rows, **sizes, **SMALL)).eval()


MAKERS: dict[str, Any] = {
    "llama": make_llama,
    "llama-untied": lambda rows: make_llama(rows, tied=False),
    "gpt2": gpt2,
    "gemma2": gemma2,
    "t5": t5,
}
LORA = {"gpt2": ["c_attn"], "t5": ["q", "v"]}


def trained(base: Any, tokenizer: Any, lora: list[str] | None, **how: Any) -> Any:
    model = copy.deepcopy(base)
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=lora, lora_dropout=0.0))
    plan = fl.add_tokens(model, tokenizer, NEW, also={"*lora_*": fl.everything} if lora else None, **how)
    train(model.train(), plan.parameters(), batch_of(tokenizer))
    return model.eval()


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch_of(tokenizer)).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True], ids=["tokens", "tokens and LoRA"])
@pytest.mark.parametrize("family", MAKERS)
def test_peft_loads_it_and_gives_the_same_logits_to_the_bit(
    family: str, lora: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    base = MAKERS[family](len(tokenizer)).to(dtype)
    model = trained(base, tokenizer, LORA.get(family, ["q_proj", "v_proj"]) if lora else None)
    merged = copy.deepcopy(model)
    fl.merge(merged)
    expected = logits(merged, tokenizer)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fl.export_peft(model, tmp_path / "adapter")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert not torch.equal(logits(base, tokenizer), expected)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, tokenizer), expected)
    torch.testing.assert_close(logits(model, tokenizer), expected)  # other products: the last bit may differ
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir()) < 20_000


def test_back_again_a_loaded_adapter_is_merged_and_learns_on(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    base = make_llama(len(tokenizer), tied=False)
    model = trained(base, tokenizer, None)
    fl.export_peft(model, tmp_path)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    back = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    plan = fl.add_tokens(back, tokenizer, NEW)  # tokens that have rows start from these
    assert torch.equal(table(back), table(model))
    assert torch.equal(back.lm_head.weight.detach(), model.lm_head.weight.detach())
    train(back, plan.parameters(), batch_of(tokenizer), 1)
    assert (table(back) != table(model)).any(dim=1).nonzero().flatten().tolist() == [286, 287]


def test_float32_rows_of_a_bfloat16_table_are_kept_in_float32(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tokenizer = make_tokenizer()
    model = trained(make_llama(len(tokenizer)).bfloat16(), tokenizer, None)
    fl.export_peft(model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert [name.split(".")[-2] for name in saved] == ["lm_head", "embed_tokens"]  # tied: the same under each name
    rows, again = saved.values()
    assert torch.equal(rows, again)
    assert torch.equal(rows, model.get_input_embeddings().weight.learned)
    assert rows.dtype == torch.float32
    assert not torch.equal(rows, rows.bfloat16().float())


def test_rows_keep_the_order_of_their_ids(tmp_path: Path) -> None:
    base = make_llama(9)
    model = copy.deepcopy(base)
    fl.train_only(model, {"model.embed_tokens.weight": fl.rows([7, 2, 5])})
    with torch.no_grad():
        model.model.embed_tokens.weight.learned.copy_(torch.randn(3, 64))
    fl.export_peft(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["token_indices"] == [7, 2, 5]
    merged = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    assert torch.equal(table(merged), table(model))


def test_an_export_replaces_the_one_before_and_leaves_other_files(tmp_path: Path) -> None:
    base = make_llama(9)
    (tmp_path / "README.md").write_text("mine")
    for value in (1.0, 2.0):
        model = copy.deepcopy(base)
        fl.train_only(model, {"model.embed_tokens.weight": fl.rows([7])})
        with torch.no_grad():
            model.model.embed_tokens.weight.learned.fill_(value)
        fl.export_peft(model, tmp_path)
    merged = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    assert merged.model.embed_tokens.weight[7].unique().tolist() == [2.0]
    assert (tmp_path / "README.md").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def _other_rows(model: Any) -> None:
    fl.train_only(model, {"model.embed_tokens.weight": fl.rows([1]), "lm_head.weight": fl.rows([2])})


REFUSED: dict[str, tuple[Any, str]] = {
    "no plan": (lambda model: fl.train_only(model, {}), "no row of its embedding learns. Call fl.add_tokens first"),
    "a norm": (
        lambda model: fl.train_only(model, {"model.embed_tokens.weight": fl.rows([1]), "*norm.weight": fl.everything}),
        "norm.weight learns, and PEFT's trainable tokens hold rows of the embedding and the head only",
    ),
    "entries": (
        lambda model: fl.train_only(model, {"lm_head.weight": fl.entries(torch.eye(9, 64).bool())}),
        "lm_head.weight learns, and PEFT's trainable tokens hold rows",
    ),
    "other rows": (_other_rows, "in the head other rows learn than in the embedding"),
}


@pytest.mark.parametrize(("plan", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_an_adapter_cannot_hold_is_refused_and_nothing_is_written(plan: Any, says: str, tmp_path: Path) -> None:
    model = make_llama(9, tied=False)
    plan(model)
    with pytest.raises(fl.PartialTensorError, match=says):
        fl.export_peft(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_head_with_a_bias_is_refused(tmp_path: Path) -> None:
    model = make_gptj(9)
    fl.train_only(model, {"transformer.wte.weight": fl.rows([1])})
    with pytest.raises(fl.PartialTensorError, match="its head has a bias, which PEFT's trainable tokens leave out"):
        fl.export_peft(model, tmp_path)


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    model = make_llama(9)
    fl.train_only(model, {"model.embed_tokens.weight": fl.rows([1])})
    (tmp_path / "file").touch()
    with pytest.raises(fl.LearnedFileError, match=r"file: cannot be written: .*\. Name another folder\.$"):
        fl.export_peft(model, tmp_path / "file")
