"""The Trainer of transformers with LearnedCallback: a resumed run ends with the bits of an uninterrupted one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from frostline.integrations.transformers import LearnedCallback  # noqa: E402

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def make(tied: bool, dtype: torch.dtype, lora: bool = False) -> Any:
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["?", "the", "cat", "sat", "on"])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="?", pad_token="?")
    special = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.LlamaConfig(vocab_size=5, tie_word_embeddings=tied, **special, **SIZES)
    model, also = transformers.LlamaForCausalLM(config).to(dtype), {}
    if lora:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        also = {"*lora_*": fl.everything}
    fl.add_tokens(model, tokenizer, ["<a>", "<b>"], also=also)
    return model, tokenizer


def train(
    folder: Path,
    callbacks: list[Any],
    resume: Any = None,
    *,
    output: Path | None = None,
    best: bool = False,
    **how: Any,
) -> Any:
    model, tokenizer = make(**({"tied": True, "dtype": torch.bfloat16} | how))
    ids = tokenizer(["the <a> cat <b>", "<b> sat on <a>", "cat sat <a> on"]).input_ids
    data = [{"input_ids": row, "labels": row} for row in ids * 6]
    settings = {"save_steps": 2, "logging_steps": 1, "learning_rate": 1e-3, "max_steps": 6, "report_to": []}
    if best:
        settings |= {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "load_best_model_at_end": True,
            "greater_is_better": True,
        }
    arguments = transformers.TrainingArguments(
        str(output or folder), use_cpu=True, disable_tqdm=True, per_device_train_batch_size=3, **settings
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data, eval_dataset=data[:3] if best else None, callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return model


def learned(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def same(a: Any, b: Any) -> bool:
    pairs = list(zip(learned(a), learned(b), strict=True))
    return bool(pairs) and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*checkpoint:UserWarning")
@pytest.mark.parametrize(
    "how",
    [{}, {"tied": False}, {"dtype": torch.float16}, {"dtype": torch.float32}, {"lora": True}],
    ids=["bfloat16", "untied", "float16", "float32", "lora"],
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, how: dict[str, Any]) -> None:
    start = make(**({"tied": True, "dtype": torch.bfloat16} | how))[0]
    whole = train(tmp_path, [LearnedCallback()], **how)
    for step in (2, 4):
        resumed = train(tmp_path, [LearnedCallback()], tmp_path / f"checkpoint-{step}", **how)
        assert same(resumed, whole)
    assert not any(torch.equal(a, b) for a, b in zip(learned(start), learned(whole), strict=True))
    table = (model.get_input_embeddings().weight.detach()[:5] for model in (start, whole))
    assert torch.equal(*table)


def test_without_it_a_bfloat16_run_resumes_from_rounded_rows(tmp_path: Path) -> None:
    whole = train(tmp_path, [])
    assert not same(train(tmp_path, [], tmp_path / "checkpoint-2"), whole)


def test_a_checkpoint_elsewhere_is_named(tmp_path: Path) -> None:
    """One of the same number lies in the folder that the Trainer writes to: it is not taken for the other."""
    train(tmp_path / "other", [LearnedCallback()])
    whole = train(tmp_path / "run", [LearnedCallback()], tied=False)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "run" / "checkpoint-4", moved)
    with pytest.raises(fl.LearnedFileError, match=r"not the checkpoint .*Pass that checkpoint: LearnedCallback"):
        train(tmp_path / "other", [LearnedCallback()], moved, tied=False)
    again = train(tmp_path / "third", [LearnedCallback(moved)], moved, tied=False)
    assert same(again, whole)


def test_a_checkpoint_without_the_file_is_refused(tmp_path: Path) -> None:
    train(tmp_path, [])
    with pytest.raises(fl.LearnedFileError, match=r"checkpoint-2: .*or without learned.safetensors"):
        train(tmp_path, [LearnedCallback()], tmp_path / "checkpoint-2")


def test_the_best_checkpoint_is_returned_to_in_full_precision(tmp_path: Path) -> None:
    """The greatest loss is taken for the best, so that is the first checkpoint."""
    model = train(tmp_path, [LearnedCallback()], best=True)
    fresh, _ = make(tied=True, dtype=torch.bfloat16)
    fl.load_learned(fresh, tmp_path / "checkpoint-2" / "learned.safetensors")
    assert same(model, fresh)
    rounded = learned(model)[0].bfloat16().float()
    assert not torch.equal(rounded, learned(model)[0])


def test_it_is_found_without_importing_transformers_first() -> None:
    assert fl.integrations.transformers.LearnedCallback is LearnedCallback
    with pytest.raises(AttributeError, match="has no attribute 'keras'"):
        _ = fl.integrations.keras
