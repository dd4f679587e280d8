"""New tokens under DeepSpeed's ZeRO: a script, because DeepSpeed sets up the process that it runs in.

    python -m torch.distributed.run --nproc-per-node 2 train_zero.py FOLDER WAY...

Each process writes to FOLDER what it saw, as JSON. The oracle is the plain model under the same engine, with the
gradient of its tables masked.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
from pathlib import Path
from typing import Any

import deepspeed
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import frostline as fl

WORDS = [f"w{number}" for number in range(50)]
WAYS: dict[str, dict[str, Any]] = {
    "stage 1": {"zero_optimization": {"stage": 1}},
    "stage 2": {"zero_optimization": {"stage": 2}},
    "stage 2, clipped": {"zero_optimization": {"stage": 2}, "gradient_clipping": 0.01},
    "stage 2, bfloat16": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
    "stage 3": {"zero_optimization": {"stage": 3}},
}
NEW = ["<tool>", "</tool>"]
TABLES = ["model.embed_tokens.weight", "lm_head.weight"]


class FusedLoss(torch.autograd.Function):
    """A loss that reads the weight of the head itself, as fused losses do: the head is never called."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, labels)
        return torch.nn.functional.cross_entropy(hidden @ weight.t(), labels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        hidden, weight, labels = ctx.saved_tensors
        errors = (hidden @ weight.t()).softmax(-1)
        errors[range(len(labels)), labels] -= 1
        errors = gradient * errors / len(labels)
        return errors @ weight, errors.t() @ hidden, None


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: id for id, word in enumerate(["?", *WORDS])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?")


def make_plain(rows: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes, tie_word_embeddings=False))


def make_model(way: str, masked: bool = False) -> LlamaForCausalLM:
    """Return a model of which the new rows learn; or, as the oracle, a plain one, masked to do the same."""
    tokenizer = make_tokenizer()
    model = make_plain(len(tokenizer)).to(torch.bfloat16 if "bfloat16" in way else torch.float32)
    fl.add_tokens(model, tokenizer, NEW)
    if masked:
        fl.merge(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in TABLES)
            if name in TABLES:
                keep = torch.arange(len(parameter))[:, None] >= len(parameter) - len(NEW)
                parameter.register_hook(lambda gradient, keep=keep: gradient * keep)
    return model


def start(model: LlamaForCausalLM, way: str) -> Any:
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = {"train_micro_batch_size_per_gpu": 2, "zero_allow_untested_optimizer": True, **WAYS[way]}
    optimizer = torch.optim.AdamW(learns, lr=0.01, weight_decay=0.0)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def train(engine: Any, steps: range) -> None:
    model = engine.module
    for step in steps:
        torch.manual_seed(100 * step + torch.distributed.get_rank())
        ids = torch.randint(1, 53, (2, 9))
        ids[:, 4] = 51  # <tool>
        hidden = engine(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, :-1]
        loss = FusedLoss.apply(hidden.flatten(0, 1), model.lm_head.weight, ids[:, 1:].flatten())
        engine.backward(loss)
        engine.step()


def values(model: LlamaForCausalLM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained(way: str, folder: Path) -> dict[str, Any]:
    """Train, save half-way; return what moved, how far from the oracle, and whether a resume is exact."""
    model = make_model(way)
    before = values(model)
    engine = start(model, way)
    train(engine, range(2))
    engine.save_checkpoint(str(folder / way))
    train(engine, range(2, 4))
    after = values(model)

    oracle = make_model(way, masked=True)
    train(start(oracle, way), range(4))
    wanted = values(oracle)

    again = make_model(way)
    engine = start(again, way)
    engine.load_checkpoint(str(folder / way))
    train(engine, range(2, 4))
    moved = {name: (after[name] != before[name]) for name in after}
    return {
        "moved": {name: moved[name].any(1).nonzero().flatten().tolist() for name in TABLES},
        "elsewhere": [name for name in after if name not in TABLES and moved[name].any()],
        "from oracle": max((after[name] - wanted[name]).abs().max().item() for name in TABLES),
        "resume is exact": same_bits(values(again), after),
    }


def refused(make: Any) -> str:
    try:
        make()
    except fl.PartialTensorError as error:
        return str(error)
    return "not refused"


def stage_3(way: str) -> dict[str, Any]:
    """Return what is said of a partial model under ZeRO-3, and of a plan for a model that ZeRO-3 has split."""
    model = make_model(way)
    before = values(model)
    saw: dict[str, Any] = {"partial": refused(lambda: start(model, way)), "unchanged": same_bits(values(model), before)}
    train(start(model, "stage 2"), range(1))
    saw["trains under stage 2 afterwards"] = not same_bits(values(model), before)

    split = make_plain(51)
    engine = start(split, way)
    saw["split"] = refused(lambda: fl.train_only(split, {"lm_head.weight": fl.rows([3])}))
    tokenizer = make_tokenizer()
    saw["tokens"] = refused(lambda: fl.add_tokens(split, tokenizer, NEW))
    saw["tokenizer"] = len(tokenizer)
    with deepspeed.zero.Init(config_dict_or_path=engine.config):
        born_split = make_plain(51)
    saw["born split"] = refused(lambda: fl.train_only(born_split, {"lm_head.weight": fl.rows([3])}))

    whole = make_plain(51)
    fl.train_only(whole, {"lm_head.weight": fl.everything})
    engine = start(whole, way)  # whole tensors are nothing special
    with deepspeed.zero.GatheredParameters(list(whole.parameters())):
        before = values(whole)
    train_whole(engine)
    with deepspeed.zero.GatheredParameters(list(whole.parameters())):
        saw["whole tensors that moved"] = [
            name for name, value in values(whole).items() if (value != before[name]).any()
        ]
    return saw


def train_whole(engine: Any) -> None:
    ids = torch.arange(1, 19).view(2, 9)
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()


if __name__ == "__main__":
    faulthandler.enable()  # a crash in C++ says where
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("ways", choices=WAYS, nargs="+")
    arguments = parser.parse_args()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiling it takes minutes; gloo does the same
    deepspeed.init_distributed("gloo")
    for way in arguments.ways:
        result = stage_3(way) if way == "stage 3" else trained(way, arguments.folder)
        rank = torch.distributed.get_rank()
        (arguments.folder / f"{way}.{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()
