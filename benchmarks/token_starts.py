"""Where should the row of a new token start?

A small Llama, tied, is trained on Python's own library, whose names are cut into pieces. Then the 40 commonest names of
three pieces or more become tokens, each start in turn, and only their rows learn. Printed: the loss on files that
were not trained on, over the lines with a new token, in bits for each byte (so that it can be compared with no new
tokens at all), before the first step, after 25 and after 100.

Run:    python benchmarks/token_starts.py          (a minute on one core; needs transformers)
"""

from __future__ import annotations

import collections
import copy
import re
import sysconfig
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import frostline as fl
from frostline.printing import text_table

TOKENS, LENGTH, BATCH = 40, 32, 16


def read() -> tuple[list[str], list[str]]:
    """Return lines of the standard library: to train on, and others."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:90]
    lines = [[line for line in f.read_text(errors="ignore").splitlines() if len(line) > 20] for f in files]
    return [line for f in lines[:70] for line in f], [line for f in lines[70:] for line in f]


def make_tokenizer(lines: list[str]) -> Any:
    """Return a byte-level BPE of 1,000 tokens."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator(
        lines,
        trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False),
    )
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=plain, pad_token="<pad>")


def batches(tokenizer: Any, lines: list[str], count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Return `count` batches of lines, drawn with `seed`."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        drawn = [lines[i] for i in torch.randint(len(lines), (BATCH,), generator=generator).tolist()]
        batch = tokenizer(drawn, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return found


def bits(model: Any, tokenizer: Any, lines: list[str]) -> float:
    """Return the loss in bits for each byte of `lines`."""
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(lines), 64):
            part = tokenizer(lines[start : start + 64], padding=True, return_tensors="pt")
            ids, mask = part["input_ids"], part["attention_mask"]
            labels = ids.masked_fill(mask == 0, -100)
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
            total += torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum").item()
            count += sum(len(line.encode()) for line in lines[start : start + 64])
    return total / count / 0.6931


def steps(model: Any, parameters: list[Any], data: list[dict[str, torch.Tensor]], rate: float) -> None:
    """Take a step of AdamW for each batch."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for batch in data:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


def main() -> None:
    """Train, add the tokens with each start, and print the table."""
    torch.manual_seed(0)
    lines, held_out = read()
    tokenizer = make_tokenizer(lines)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config)
    steps(model, list(model.parameters()), batches(tokenizer, lines, 600, 1), 2e-3)

    names = collections.Counter(name for line in lines for name in re.findall(r"\b[A-Za-z_]{8,}\b", line))
    chosen = [n for n, _ in names.most_common() if len(tokenizer(n, add_special_tokens=False).input_ids) > 2][:TOKENS]
    has_one = re.compile("|".join(map(re.escape, chosen)))
    train, test = ([line for line in part if has_one.search(line)] for part in (lines, held_out))
    test = test[:200]
    texts = {name: " ".join(re.findall(r"[A-Z]?[a-z]+", name)).lower() or name for name in chosen}
    starts: dict[str, Any] = {
        "subwords": "subwords",
        "a text (the words in the name)": texts,
        "mean": "mean",
        "normal": "normal",
        "zeros": "zeros",
    }
    rows: list[tuple[str, ...]] = [("start", "0 steps", "25 steps", "100 steps")]
    rows.append(("(no new tokens)", f"{bits(model, tokenizer, test):.3f}", "", ""))
    for name, init in starts.items():
        torch.manual_seed(0)
        grown, known = copy.deepcopy(model), copy.deepcopy(tokenizer)
        plan = fl.add_tokens(grown, known, chosen, init=init)
        cells = [f"{bits(grown, known, test):.3f}"]
        data = batches(known, train, 100, 2)
        steps(grown, plan.parameters(), data[:25], 3e-3)
        cells.append(f"{bits(grown, known, test):.3f}")
        steps(grown, plan.parameters(), data[25:], 3e-3)
        rows.append((name, *cells, f"{bits(grown, known, test):.3f}"))
    print(f"{len(chosen)} tokens, such as {', '.join(chosen[:4])}; {len(test)} lines; bits for each byte")
    print(text_table(rows, right=(1, 2, 3)))


if __name__ == "__main__":
    main()
