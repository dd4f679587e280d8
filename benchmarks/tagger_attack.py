"""What do two swapped words cost a tagger, and what does training against moved vectors win back?

Attacks trained taggers on labelled sentences, one thread:
    attack   frostline.adversarial.swap: the words that raise the loss most
    random   allowed swaps at random, in as many words as the attack changed at most
Seconds are CPU seconds of the process, so that other programs count less. Exactness first: the loss of each changed
text by a plain forward pass is the one that the attack reported.

Run:    python benchmarks/tagger_attack.py dev.conll MODEL [MODEL ...] [--k 4] [--beam 2]
        MODEL: a folder that `frostline tagger train` wrote, with --adversarial fgm:0.3 or without
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from frostline import tagger
from frostline.adversarial.attack import Attacked, Summary, attack
from frostline.adversarial.swap import Swap, swap
from frostline.printing import text_table
from frostline.tagger.attack import TaggerVictim
from frostline.tagger.data.batches import encode, pad


def random_swaps(loss_fn: Any, module: Any, ids: Tensor, **options: Any) -> Swap:
    """Return allowed swaps drawn at random: all are tried under a loss that is noise, where a change beats none."""

    generator = torch.Generator().manual_seed(int(ids.sum()))

    def noise(rows: Tensor, which: Tensor) -> Tensor:
        if torch.equal(rows, ids):
            return loss_fn(rows, which) * 0  # type: ignore[no-any-return]
        changed = (rows != ids[which]).sum(1)
        losses: Tensor = module(rows).sum((1, 2)) * 0 + changed + torch.rand(len(rows), generator=generator)
        return losses

    return swap(noise, module, ids, **options | {"k": None, "beam": 1})


def check(model: tagger.Tagger, found: list[Attacked]) -> None:
    """Raise unless the reported losses are those of a plain pass over the changed text."""
    index = {tag: number for number, tag in enumerate(model.tags)}
    for each in found[:50]:
        tags = [index.get(tag, 0) for tag in each.target]
        batch = pad([encode(each.after, model.vocabulary, tags, characters=model.model.char_cnn is not None)])
        with torch.no_grad():
            features = model.model.read(batch.rows, batch.shapes, batch.lengths, batch.spellings)
            loss = model.model.head.loss(features, batch.tags, batch.lengths).item()
        if abs(loss - each.loss_after) > 1e-3:
            raise AssertionError(f"{each.after}: {loss} by a plain pass, {each.loss_after} reported")


def main() -> None:
    """Attack each tagger and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--beam", type=int, default=2)
    parser.add_argument("--max-swaps", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sentences = tagger.read_conll(args.file)
    rows = [("tagger", "swaps", "F1 before", "F1 after", "accuracy", "success", "words", "passes", "sentences/s")]
    for path in args.models:
        model = tagger.Tagger.load(path)
        victim = TaggerVictim(model)
        for name, search in (("attack", swap), ("random", random_swaps)):
            summary, began = Summary(), time.process_time()
            options: dict[str, Any] = {"max_swaps": args.max_swaps, "k": args.k, "beam": args.beam}
            found = list(attack(victim, sentences, summary=summary, search=search, **options))
            seconds = time.process_time() - began
            if name == "attack":
                check(model, found)
            gold = [each.target for each in found]
            before, after = (
                tagger.score(gold, [getattr(each, f"predicted_{when}") for each in found]).f1
                for when in ("before", "after")
            )
            figures = summary.to_dict()
            shares = (f"{figures[key]:.1%}" for key in ("accuracy", "success", "words_changed"))
            rows.append(
                (path, name, f"{before:.1%}", f"{after:.1%}", *shares, f"{figures['passes']:.1f}",
                 f"{len(found) / seconds:.0f}" if name == "attack" else "")
            )  # fmt: skip
            print(text_table(rows[:1] + rows[-1:]).splitlines()[-1], flush=True)
    print(text_table(rows, right=range(2, 9)))


if __name__ == "__main__":
    main()
