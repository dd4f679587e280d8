"""What does a step cost in which a few entries, experts or rows learn, whatever the operation?

Compares one forward + backward + optimizer step of
    frozen      nothing of these tensors learns; the gradient still goes back through the whole model   (the floor)
    frostline   fl.entries, fl.rows
    masked      weight.register_hook(lambda g: g * mask)
    shira       PEFT's SHiRA, with the same entries (of `nn.Linear` only)
    full        these tensors learn whole
in language models, experts, convolutions, lookups and other uses of a table: see ways/cases.py. First all must agree:
without decay the losses of frostline and SHiRA are those of the masked gradient, and frozen entries keep every bit.
Then they take turns, so that a slow moment affects all of them; a quick step is taken twice and the second one is
timed, so that it finds its own caches; a way of more than ten times the floor takes three turns. Peak memory is
measured in a process of its own for each way.

Run:    python benchmarks/entries.py [--quick] [--cases PART-OF-NAME ...]     (memory is measured on Linux only)
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # idle threads do not spin: other processes may need the core
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

from ways.cases import Case, cases
from ways.entries import WAYS, mask_of

PROOF = 4  # steps that are compared before anything is timed
QUICK = 0.05  # seconds: quicker steps are taken twice
FEWEST = 3  # turns of a way that takes more than ten times the floor


class Trainer:
    """A model of which parts learn in one way, and its optimizers."""

    def __init__(self, case: Case, name: str) -> None:
        torch.manual_seed(0)
        self.case, self.model = case, case.make()
        self.parts = case.parts(self.model)
        self.always = [n for n, p in self.model.named_parameters() if p.requires_grad and n not in self.parts]
        self.way = WAYS[name](self.model, self.parts)
        always = [p for n, p in self.model.named_parameters() if n in self.always]
        self.optimizers = case.optimizers(always, self.way.learns)
        self.loss = torch.compile(self.model, fullgraph=True) if case.compiled else self.model

    def step(self, turn: int, stepped: bool = True) -> float:
        """Do one forward, backward and optimizer step; return the loss."""
        batch = self.case.batch(turn)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        for optimizer in self.optimizers if stepped else ():
            optimizer.step()
        return float(loss.detach())


@dataclass
class Figures:
    """The measurements of one way."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of the process
    wall: list[float] = field(default_factory=list)
    moved: float = 0.0  # share of the entries that learn which moved in the proof
    memory: tuple[float, float] | None = None  # peak beyond the model with its plan, and beyond the model before it; MB


def measure(case: Case, names: Sequence[str], rounds: int) -> dict[str, Figures]:
    """Prove that the ways agree, then time them in turns, each over its own model."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    before = {name: tensor.detach().clone() for name, tensor in case.make().named_parameters()}
    trainers = {name: Trainer(case, name) for name in names}
    figures = {name: Figures() for name in names}
    for name, trainer in trainers.items():
        figures[name].losses = [trainer.step(turn) for turn in range(PROOF)]
        figures[name].moved = moved(trainer, name, before)
    check(case, figures)
    for turn in range(rounds):
        for name, trainer in trainers.items():
            if turn >= FEWEST and min(figures[name].seconds) > 10 * min(figures["frozen"].seconds):
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            trainer.step(turn, case.stepped)
            if time.perf_counter() - wall < QUICK:
                wall, cpu = time.perf_counter(), time.process_time()
                trainer.step(turn + 1, case.stepped)
            figures[name].seconds.append(time.process_time() - cpu)
            figures[name].wall.append(time.perf_counter() - wall)
    return figures


def moved(trainer: Trainer, name: str, before: dict[str, Tensor]) -> float:
    """Prove that frozen entries kept every bit; return the share of the others, of these tensors, that moved."""
    count, changed, always = 0, 0, False
    for tensor, old in before.items():
        now = trainer.way.read(tensor)
        if tensor in trainer.parts and name != "full":
            learns = mask_of(old, trainer.parts[tensor]).expand_as(old)
            difference = now != old
            assert name != "frozen" or not difference.any(), f"{name}: {tensor} moved"
            assert not difference[~learns].any(), f"{name}: frozen entries of {tensor} moved"
            count, changed = count + int(learns.sum()), changed + int(difference[learns].sum())
        elif tensor in trainer.always:
            always = always or not torch.equal(now, old)
        else:
            assert name == "full" or torch.equal(now, old), f"{name}: {tensor} moved"
    assert always, f"{name}: nothing moved"
    return changed / max(1, count)


def check(case: Case, figures: dict[str, Figures]) -> None:
    """Prove that what learns the same has equal losses; the others only in their first step."""
    reference = figures["masked"]
    expected = torch.tensor(reference.losses)
    assert not case.learns or reference.moved > 0, "what learns did not move, so equal losses would prove nothing"
    for name, measured in figures.items():
        steps = slice(1) if name in ("frozen", "full") else slice(None)
        losses = torch.tensor(measured.losses)
        same = torch.allclose(losses[steps], expected[steps], atol=1e-5, rtol=1e-5)
        assert same, f"{name} disagrees: losses {losses.tolist()}, the masked gradient's {expected.tolist()}"
        as_many = name in ("frozen", "full") or abs(measured.moved - reference.moved) <= 0.01
        assert as_many, (
            f"{name}: {measured.moved:.2%} of what learns moved, with a masked gradient {reference.moved:.2%}"
        )


def peak_alone(case: str, name: str, quick: bool) -> tuple[float, float]:
    """Return the peak of some steps in MB: beyond the model with its plan, and beyond the model before the plan."""
    command = [sys.executable, __file__, "--alone", case, name, *(["--quick"] if quick else [])]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # return freed memory at once
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    before, after, peak = json.loads(done.stdout.splitlines()[-1])
    return peak - after, peak - before


def _alone(case: str, name: str, quick: bool) -> None:
    """Print memory in MB as JSON: before the plan, after it, and the peak of the steps."""
    position = list(cases(quick)).index(case)
    small = Trainer(list(cases(quick=True).values())[position], name)
    for turn in range(2):  # so that libraries are loaded
        small.step(turn)
    del small
    found, before = cases(quick)[case], []

    def make() -> nn.Module:
        model = found.make()
        gc.collect()
        before.append(_memory("VmRSS"))
        return model

    trainer = Trainer(replace(found, make=make), name)
    trainer.parts.clear()  # the masks are the caller's
    gc.collect()
    after = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    for turn in range(3):
        trainer.step(turn, found.stepped)
    print(json.dumps((*before, after, _memory("VmHWM"))))


def _memory(line_name: str) -> float:
    """Return a line of Linux's /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(line_name))


def table_of(figures: dict[str, Figures]) -> str:
    """Return the figures as a Markdown table; ratios compare the least of the process's times."""
    lines = [
        "| way | ms a step of the process: least, median | wall: least, median | x frozen | x full "
        "| MB beyond the plan | MB beyond the model |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for name, measured in figures.items():
        cpu, wall = (
            f"{1e3 * min(times):,.2f}, {1e3 * statistics.median(times):,.2f}"
            for times in (measured.seconds, measured.wall)
        )
        x_frozen, x_full = (
            f"{min(measured.seconds) / min(figures[base].seconds):,.2f}" if base in figures else "-"
            for base in ("frozen", "full")
        )
        beyond = " | ".join(f"{max(0.0, memory):,.0f}" for memory in measured.memory) if measured.memory else "- | -"
        lines.append(f"| {name} | {cpu} | {wall} | {x_frozen} | {x_full} | {beyond} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prove that all ways agree, time them, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small models and few rounds: does it run?")
    parser.add_argument(
        "--rounds", type=int, default=12, help="steps of each way that are timed; of quick ones ten times"
    )
    parser.add_argument("--cases", nargs="+", default=[""], metavar="PART", help="only cases with this in their name")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="frozen and masked always take part"
    )
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", nargs=2, metavar=("CASE", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.alone:
        case_name, way_name = args.alone
        _alone(case_name, way_name, args.quick)
        return 0
    found = {name: case for name, case in cases(args.quick).items() if any(part in name for part in args.cases)}
    found = {name: case for name, case in found.items() if not (case.linear_only and not find_spec("transformers"))}
    wanted = [name for name in WAYS if name in (*args.ways, "frozen", "masked")]
    names = [name for name in wanted if name != "shira" or find_spec("peft")]
    print(f"{args.threads} thread(s), torch {torch.__version__}; {len(wanted) - len(names)} way(s) left out: no peft.")
    memory = not (args.quick or args.no_memory) and Path("/proc/self/clear_refs").exists()
    for name, case in found.items():
        ways = [way for way in names if way != "shira" or case.linear_only]
        rounds = 2 if args.quick else args.rounds * (1 if "Llama" in name else 10)
        figures = measure(case, ways, rounds)
        for way in ways if memory else ():
            figures[way].memory = peak_alone(name, way, args.quick)
        busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
        print(f"\n### {name}\n\nAll agree. Load of the machine: {busy}.\n\n{table_of(figures)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
