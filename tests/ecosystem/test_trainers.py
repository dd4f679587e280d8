"""New tokens, trained with the trainers of other libraries: TRL's three for language models, and DeepSpeed.

TRL hands the weight of the head to an autograd.Function of its own. Each run is compared with an oracle that knows
nothing of frostline: the plain model under the same trainer, with the gradient of its tables masked. A small random
Llama and a tokenizer made here; nothing is downloaded.

One run of each trainer by default. `make soak` runs tied and untied heads, other losses, kinds of checkpointing, and
more of DeepSpeed.
"""

from __future__ import annotations

import copy
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import frostline as fl

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytest.importorskip("deepspeed")

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")
]  # those of the trainers

NEW = ["<tool>", "</tool>"]
TEXTS = [f"the cat <tool> {number}" for number in range(16)]
TABLES = ["model.embed_tokens.weight", "lm_head.weight"]
STEPS, SAVED_AT = 4, 2

DEFAULTS: list[tuple[str, bool, dict[str, Any]]] = [("sft", False, {}), ("dpo", True, {}), ("grpo", True, {})]
MORE: list[tuple[str, bool, dict[str, Any]]] = [
    (trainer, tied, settings)
    for trainer, settings in [
        ("sft", {}),
        ("sft", {"gradient_checkpointing": False}),
        ("sft", {"gradient_checkpointing_kwargs": {"use_reentrant": True}}),
        ("sft", {"gradient_checkpointing_kwargs": {"use_reentrant": False}}),
        ("sft", {"gradient_accumulation_steps": 2}),
        ("sft", {"loss_type": "dft"}),
        ("sft", {"packing": True, "max_length": 16}),
        ("sft", {"padding_free": True, "max_length": None}),
        ("sft", {"neftune_noise_alpha": 5}),
        ("sft", {"label_smoothing_factor": 0.1}),
        ("dpo", {}),
        ("dpo", {"loss_type": ["ipo", "sft"]}),
        ("dpo", {"gradient_checkpointing": False}),
        ("dpo", {"precompute_ref_log_probs": True}),
        ("dpo", {"sync_ref_model": True, "ref_model_sync_steps": 1}),
        ("grpo", {}),
        ("grpo", {"loss_type": "grpo"}),
        ("grpo", {"gradient_checkpointing": False}),
        ("grpo", {"num_iterations": 2}),
        ("grpo", {"top_entropy_quantile": 0.5}),
    ]
    for tied in (True, False)
]
RUNS = MORE if "FROSTLINE_SOAK" in os.environ else DEFAULTS


def make_tokenizer() -> Any:
    bytewise = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.pre_tokenizer, plain.decoder = bytewise, tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    plain.train_from_iterator(
        ["the cat sat on the mat"],
        tokenizers.trainers.BpeTrainer(
            vocab_size=270, initial_alphabet=bytewise.alphabet(), special_tokens=special, show_progress=False
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def make_model(tied: bool) -> tuple[Any, Any]:
    """Return a model that knows the new tokens, of which their rows alone learn, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM(config)
    fl.add_tokens(model, tokenizer, NEW)
    return model, tokenizer


def masked(model: Any) -> Any:
    """Make `model` a plain one whose gradients are masked: the oracle."""
    fl.merge(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in TABLES)
        if name in TABLES:
            keep = torch.arange(len(parameter))[:, None] >= len(parameter) - len(NEW)
            parameter.register_hook(lambda gradient, keep=keep: gradient * keep)
    return model


def make_trainer(name: str, model: Any, tokenizer: Any, folder: Path, settings: dict[str, Any]) -> Any:
    datasets.disable_progress_bars()
    arguments = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "save_steps": SAVED_AT,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        **settings,
    }
    common = {"processing_class": tokenizer}
    if name == "sft":
        data = datasets.Dataset.from_dict({"text": TEXTS})
        return trl.SFTTrainer(model, args=trl.SFTConfig(**arguments), train_dataset=data, **common)
    if name == "dpo":
        pairs = {"prompt": TEXTS, "chosen": [" <tool> sat"] * len(TEXTS), "rejected": [" mat"] * len(TEXTS)}
        data, reference = datasets.Dataset.from_dict(pairs), copy.deepcopy(model)
        return trl.DPOTrainer(model, reference, args=trl.DPOConfig(**arguments), train_dataset=data, **common)
    arguments |= {"num_generations": 2, "max_completion_length": 5}
    data = datasets.Dataset.from_dict({"prompt": TEXTS})
    return trl.GRPOTrainer(model, reward, args=trl.GRPOConfig(**arguments), train_dataset=data, **common)


def reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(completion))) for completion in completions]


def values(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run_id(run: Any) -> str:
    trainer, tied, settings = run
    return "-".join([trainer, "tied" if tied else "untied", *(f"{key}={value}" for key, value in settings.items())])


@pytest.mark.parametrize("run", RUNS, ids=run_id)
def test_a_trainer_moves_the_new_rows_alone_as_the_oracle_does_and_resumes_to_the_same_bits(run, tmp_path):
    name, tied, settings = run
    model, tokenizer = make_model(tied)
    before = values(model)
    make_trainer(name, model, tokenizer, tmp_path, settings).train()
    after = values(model)

    plain = masked(make_model(tied)[0])
    make_trainer(name, plain, tokenizer, tmp_path / "oracle", settings).train()
    oracle = values(plain)
    for key, value in after.items():
        if key in TABLES:
            assert torch.equal(value[: -len(NEW)], before[key][: -len(NEW)])
            assert (value[-2] != before[key][-2]).all()  # <tool> is in every text
            assert torch.allclose(value[-len(NEW) :], oracle[key][-len(NEW) :], atol=1e-5)
        else:
            assert torch.equal(value, before[key])

    if "sync_ref_model" in settings:
        return  # TRL's checkpoints do not hold the reference
    again, tokenizer = make_model(tied)
    make_trainer(name, again, tokenizer, tmp_path, settings).train(
        resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED_AT}")
    )
    assert same_bits(values(again), after)


WAYS = {
    "stage 1": 1e-6,
    "stage 2": 1e-6,
    "stage 2, clipped": 1e-6,
    "stage 2, bfloat16": 5e-3,
}  # how far from the oracle
ZERO = list(WAYS) if "FROSTLINE_SOAK" in os.environ else ["stage 2"]


@pytest.fixture(scope="module")
def saw(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., str]) -> dict[str, list[dict[str, Any]]]:
    """What each of two processes saw under each way to use DeepSpeed's ZeRO."""
    folder, ways = tmp_path_factory.mktemp("zero"), [*ZERO, "stage 3"]
    launch(Path(__file__).with_name("train_zero.py"), folder, *ways, processes=2)
    return {way: [json.loads((folder / f"{way}.{rank}.json").read_text()) for rank in (0, 1)] for way in ways}


@pytest.mark.parametrize("way", ZERO)
def test_deepspeed_moves_the_new_rows_alone_as_the_oracle_does_and_resumes_to_the_same_bits(saw, way):
    for rank in saw[way]:
        assert rank["moved"] == {name: [51, 52] for name in TABLES}
        assert rank["elsewhere"] == []
        assert rank["from oracle"] < WAYS[way]
        assert rank["resume is exact"]


def test_zero_3_is_refused_in_one_line_before_anything_is_split(saw):
    for rank in saw["stage 3"]:
        assert rank["partial"] == (
            "model: DeepSpeed's ZeRO-3 cannot split a partial tensor. Use its stage 1 or 2, or torch's fully_shard."
        )
        assert rank["unchanged"]
        assert rank["trains under stage 2 afterwards"]


def test_a_model_that_zero_3_has_split_takes_no_plan_and_no_tokens(saw):
    says = (
        "model: DeepSpeed's ZeRO-3 has split model.embed_tokens.weight, of which no part can learn then. "
        "Load the model again, and use stage 1 or 2, or torch's fully_shard."
    )
    for rank in saw["stage 3"]:
        assert [rank["split"], rank["tokens"], rank["born split"]] == [says, says, says]
        assert rank["tokenizer"] == 51  # as it was


def test_zero_3_takes_a_plan_of_whole_tensors(saw):
    for rank in saw["stage 3"]:
        assert rank["whole tensors that moved"] == ["lm_head.weight"]


DEEPSPEED = {
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    **dict.fromkeys(["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"], "auto"),
}


def resume_under_deepspeed(name: str, folder: Path) -> None:
    """Train under DeepSpeed, resume, and compare the bits: in a process of its own, which DeepSpeed sets up."""
    seen = []
    for resume in (None, str(folder / f"checkpoint-{SAVED_AT}")):
        model, tokenizer = make_model(tied=False)
        before = values(model)
        trainer = make_trainer(name, model, tokenizer, folder, {"deepspeed": DEEPSPEED})
        trainer.train(resume_from_checkpoint=resume)
        seen.append(values(model))
        moved = {key: (seen[-1][key] != before[key]).flatten(1).any(1).tolist() for key in TABLES}
        assert not any(any(rows[: -len(NEW)]) for rows in moved.values())
        assert all(rows[-2] for rows in moved.values())
        assert all(torch.equal(seen[-1][key], before[key]) for key in before if key not in TABLES)
    assert same_bits(*seen)
    print("the same bits")


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"] if "FROSTLINE_SOAK" in os.environ else ["sft"])
def test_a_trainer_under_deepspeed_resumes_to_the_same_bits(name, tmp_path, launch):
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "1"}
    code = (
        "import deepspeed, os, pathlib, runpy;"
        "deepspeed.ops.__compatible_ops__['deepspeed_shm_comm'] = False;"
        f"os.environ.update({alone}, RANK='0', LOCAL_RANK='0');"
        f"run = runpy.run_path({__file__!r})['resume_under_deepspeed'];"
        f"run({name!r}, pathlib.Path({str(tmp_path)!r}))"
    )
    assert launch("-c", code).endswith("the same bits\n")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
