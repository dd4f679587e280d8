"""Teach a language model two new tokens; everything else keeps every bit.

A small random Llama and a small tokenizer, both made here. Its embedding is tied to its head, as in most small models.
Two tokens are added and trained on a dozen lines. Then: which rows moved, how large is the file of learned rows, and
does a fresh copy of the base model that loads this file have the same embedding?

Run:    python examples/new_tokens.py          (needs transformers: pip install transformers)
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import frostline as fl

TOKENS = ["<tool>", "</tool>"]
WORDS = ["the cat sat on the mat", "ice melts in spring", "a small tool opens the door"]
TEXTS = [
    f"{start} <tool> {word} </tool>" for start in ("call", "use", "open") for word in ("cat", "ice", "door", "mat")
]


def make_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer, as in GPT-2 and Llama 3, trained on three lines of text."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=plain)


def make_model(rows: int) -> Any:
    """Return a Llama of two layers with a tied embedding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def train(model: Any, plan: fl.Plan, batches: list[Tensor], steps: int = 60) -> list[float]:
    """Train the parameters of the plan; return the loss of each step."""
    optimizer, losses = torch.optim.AdamW(plan.parameters(), lr=0.03, weight_decay=0.1), []
    for step in range(steps):
        ids = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def mean_probability(model: Any, batches: list[Tensor], token: int) -> float:
    """Return the mean probability of `token` where it is the next token."""
    probabilities = []
    for ids in batches:
        with torch.no_grad():
            predicted = model(input_ids=ids).logits.softmax(-1)[0, :-1]
        probabilities += predicted[ids[0, 1:] == token, token].tolist()
    return sum(probabilities) / len(probabilities)


def main() -> None:
    """Run it and print what it shows."""
    torch.set_num_threads(1)  # the model is tiny
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    base, old = copy.deepcopy(model), len(tokenizer)

    plan = fl.add_tokens(model, tokenizer, TOKENS)
    print(plan)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    batches = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS]
    close = tokenizer.convert_tokens_to_ids("</tool>")
    first = mean_probability(model, batches, close)
    losses = train(model, plan, batches)
    last = mean_probability(model, batches, close)
    print(f"\nloss {losses[0]:.2f} -> {losses[-1]:.2f}, mean probability of </tool> {first:.4f} -> {last:.4f}")

    after, table = model.state_dict(), "model.embed_tokens.weight"
    rows = (after[table] != before[table]).any(dim=1).nonzero().flatten().tolist()
    others = [name for name in before if name not in (table, "lm_head.weight")]
    moved = [name for name in others if not torch.equal(after[name], before[name])]
    print(f"of {old + len(TOKENS)} rows moved: {rows}; of the {len(others)} other tensors: {moved or 'none'}")
    tied = model.lm_head.weight.learned is model.model.embed_tokens.weight.learned
    print(f"head and embedding are still tied: {tied}")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens.safetensors"
        fl.save_learned(model, file)
        print(f"the learned rows: a file of {file.stat().st_size:,} bytes")
        fl.add_tokens(base, tokenizer, TOKENS)
        fl.load_learned(base, file)
        fl.merge(base)  # a plain model
        base.save_pretrained(Path(folder) / "plain")
        again = LlamaForCausalLM.from_pretrained(Path(folder) / "plain")
    same = torch.equal(again.model.embed_tokens.weight, after[table])
    print(f"a fresh base model with that file, saved and loaded as a plain model, has the same embedding: {same}")


if __name__ == "__main__":
    main()
