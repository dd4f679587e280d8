"""What does a step cost in which a few rows of a language model's embedding learn?

Compares one forward + backward + AdamW step of a small Llama over a table of V rows, tied to the head, of which a few
rows learn:
    frozen      nothing learns; the gradient still goes back through every layer to the looked-up rows     (the floor)
    frostline   fl.rows
    peft        PEFT's trainable tokens
    hook        weight.register_hook(lambda g: g * mask)
First all must agree: without decay the losses of the last three are the same, and that of the first step is also the
floor's. Then they take turns, so that a slow moment affects all of them. Memory is measured in a separate process each.

Run:    python benchmarks/language_model.py [--quick]      (memory is measured on Linux only)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # idle threads do not spin: other processes may need the core
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

import frostline as fl

D, LAYERS, NEW = 512, 4, 3
TABLE = "model.embed_tokens.weight"


def make_model(size: int) -> Any:
    """Return a Llama with a tied table of `size` rows, the same every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=D,
        intermediate_size=3 * D,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def new_rows(size: int) -> list[int]:
    """Return the rows that learn: the last ones, as for new tokens."""
    return list(range(size - NEW, size))


def make_batch(size: int, count: int, turn: int) -> Tensor:
    """Return ids (1, count), uniform over the table except for the first four, which are tokens that learn."""
    generator = torch.Generator().manual_seed(turn)
    ids = torch.randint(size, (1, count), generator=generator)
    ids[:, :4] = torch.randint(size - NEW, size, (1, 4), generator=generator)
    return ids


def frozen(model: Any, rows: list[int]) -> tuple[Any, list[nn.Parameter]]:
    """Nothing learns, but the looked-up rows require a gradient, as in all the other ways."""
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda module, ids, output: output.requires_grad_())
    return model, []


def frostline(model: Any, rows: list[int]) -> tuple[Any, list[nn.Parameter]]:
    """The rows learn, as a partial tensor."""
    return model, fl.train_only(model, {TABLE: fl.rows(rows)}).parameters()


def peft(model: Any, rows: list[int]) -> tuple[Any, list[nn.Parameter]]:
    """PEFT's trainable tokens."""
    from peft import TrainableTokensConfig, get_peft_model

    adapted = get_peft_model(model, TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=rows))
    return adapted, [parameter for parameter in adapted.parameters() if parameter.requires_grad]


def hook(model: Any, rows: list[int]) -> tuple[Any, list[nn.Parameter]]:
    """The whole table learns; a hook multiplies its gradient by the mask."""
    model.requires_grad_(False)
    weight = model.get_input_embeddings().weight.requires_grad_()
    mask = torch.zeros(len(weight), 1).index_fill_(0, torch.tensor(rows), 1.0)
    weight.register_hook(lambda gradient: gradient * mask)
    return model, [weight]


WAYS: dict[str, Callable[[Any, list[int]], tuple[Any, list[nn.Parameter]]]] = {
    "frozen": frozen,
    "frostline": frostline,
    "peft": peft,
    "hook": hook,
}


class Trainer:
    """A model whose new rows learn in one way, and its optimizer."""

    def __init__(self, name: str, size: int, count: int, decay: float = 0.0) -> None:
        self.size, self.count = size, count
        self.model, learns = WAYS[name](make_model(size), new_rows(size))
        self.optimizer = torch.optim.AdamW(learns, lr=1e-2, weight_decay=decay) if learns else None

    def step(self, turn: int) -> float:
        """Do one forward, backward and optimizer step; return the loss."""
        ids = make_batch(self.size, self.count, turn)
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(loss.detach())

    def table(self) -> Tensor:
        """Return the table (V, D) as the model uses it now."""
        with torch.no_grad():
            looked_up: Tensor = self.model.get_input_embeddings()(torch.arange(self.size))
        return looked_up


@dataclass
class Figures:
    """The measurements of one way."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: float | None = None  # MB


def moved_by_decay(name: str, size: int = 500) -> float:
    """Return the share of the frozen rows that five steps with weight decay move."""
    trainer = Trainer(name, size, 16, decay=0.1)
    before = trainer.table().clone()
    for turn in range(5):
        trainer.step(turn)
    changed = (trainer.table() != before).any(dim=1)
    assert name == "frozen" or changed[new_rows(size)].all(), f"{name}: the new rows did not move"
    return changed[: size - NEW].float().mean().item()


def take_turns(names: Sequence[str], size: int, count: int, rounds: int) -> dict[str, Figures]:
    """Time the ways in turns, each over its own model, and compare their losses."""
    trainers = {name: Trainer(name, size, count) for name in names}
    figures = {name: Figures() for name in names}
    for turn in range(rounds + 2):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            figures[name].losses.append(trainer.step(turn))
            if turn >= 2:  # the first two make optimizer state and warm up
                figures[name].seconds.append(time.perf_counter() - start)
    check_losses(figures)
    return figures


def check_losses(figures: dict[str, Figures]) -> None:
    """Prove that all ways learn the same: equal losses in every step; for the floor, in the first step."""
    expected = torch.tensor(figures["hook"].losses)
    for name, measured in figures.items():
        losses = torch.tensor(measured.losses)
        steps = slice(1) if name == "frozen" else slice(None)
        same = torch.allclose(losses[steps], expected[steps], atol=1e-4, rtol=1e-5)
        assert same, f"{name} disagrees: losses {losses.tolist()}, hook's {expected.tolist()}"
    learned = (torch.tensor(figures["frozen"].losses[1:]) - expected[1:]).abs().min()
    assert learned > 1e-3, "what learns changes no loss, so equal losses would prove nothing"


def peak_alone(name: str, size: int, count: int) -> float:
    """Return the peak memory of some steps in MB, measured in a separate process."""
    command = [sys.executable, __file__, "--alone", name, str(size), str(count)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # return freed memory at once
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _alone(name: str, size: int, count: int) -> None:
    """Print the peak as JSON: the process that `peak_alone` starts."""
    Trainer("frostline", 100, count).step(0)  # so that libraries are loaded
    trainer = Trainer(name, size, count)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    for turn in range(3):
        trainer.step(turn)
    lines = Path("/proc/self/status").read_text().split("\n")
    print(json.dumps(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))))


def table_of(figures: dict[str, Figures], moved: dict[str, float], size: int) -> str:
    """Return the figures as a Markdown table; a ratio is the median over the turns."""
    floor, table_size = figures["frozen"], size * D * 4 / 2**20
    lines = [
        "| way | ms a step: median (least - most) | x frozen | MB beyond frozen | share of the table | decay moves |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name, measured in figures.items():
        least, middle, most = (1e3 * f(measured.seconds) for f in (min, statistics.median, max))
        ratio = statistics.median(a / b for a, b in zip(measured.seconds, floor.seconds, strict=True))
        beyond, share = "-", "-"
        if measured.peak is not None and floor.peak is not None:
            extra = max(0.0, measured.peak - floor.peak)
            beyond, share = f"{extra:,.0f}", f"{extra / table_size:.1%}"
        lines.append(
            f"| {name} | {middle:,.0f} ({least:,.0f} - {most:,.0f}) | {ratio:,.2f} | {beyond} | {share} "
            f"| {moved[name]:.0%} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prove that all ways agree, time them, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a small table and few rounds: does it run?")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each way that are timed")
    parser.add_argument("--rows", type=int, default=128_256, help="rows of the table")
    parser.add_argument("--ids", type=int, nargs="+", default=[16, 64], help="ids a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", nargs=3, metavar=("WAY", "V", "IDS"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not find_spec("transformers"):
        print("language_model: needs transformers: pip install transformers", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    if args.alone:
        name, rows, count = args.alone
        _alone(name, int(rows), int(count))
        return 0
    names = [name for name in WAYS if name != "peft" or find_spec("peft")]
    if len(names) < len(WAYS):
        print("peft is not installed, so its row is left out: pip install peft\n")
    size, rounds = (2_000, 3) if args.quick else (args.rows, args.rounds)
    moved = {name: moved_by_decay(name) for name in names}
    print(
        f"Llama of {LAYERS} layers, D = {D}, tied table of {size:,} rows, {NEW} rows learn, AdamW, "
        f"{args.threads} thread(s), torch {torch.__version__}."
    )
    for count in args.ids:
        figures = take_turns(names, size, count, rounds)
        if not args.quick and Path("/proc/self/clear_refs").exists():
            for name in names:
                figures[name].peak = peak_alone(name, size, count)
        print(f"\n### {count:,} ids a step. The losses agree.\n\n{table_of(figures, moved, size)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
