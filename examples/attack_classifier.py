"""A classifier of sentences to attack from the command line, and a start for your own.

Run:  python examples/attack_classifier.py
      frostline attack examples/attack_classifier.py:make reviews.tsv --labels

A model over looked-up words (here the mean of their vectors) is trained in a second on made-up reviews. `make` returns
what `frostline attack` needs: the model, its loss, the vocabulary, and the names of the classes.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from frostline.adversarial.attack import Summary, attack
from frostline.adversarial.classifier import Classifier

GOOD = ["lovely", "great", "fine", "splendid", "decent", "moving"]
BAD = ["dull", "awful", "poor", "tedious", "weak", "bland"]
THINGS = ["film", "plot", "cast", "score", "script", "ending"]
CLASSES = ["bad", "good"]


class Average(nn.Module):
    """Scores of a sentence from the mean of its words' vectors."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 16, padding_idx=0), nn.Linear(16, len(CLASSES))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the scores, (N, 2), of ids (N, T), 0 at padding."""
        inside = (ids != 0)[..., None]
        scores: Tensor = self.head((self.embed(ids) * inside).sum(1) / inside.sum(1).clamp(min=1))
        return scores


def loss(scores: Tensor, classes: Tensor) -> Tensor:
    """Return the loss of each row, (N,)."""
    return nn.functional.cross_entropy(scores, classes, reduction="none")


def reviews(count: int, seed: int) -> list[tuple[list[str], str]]:
    """Return made-up reviews: four judgements each, most of them of its class."""
    dice = random.Random(seed)
    found = []
    for _ in range(count):
        good = dice.random() < 0.5
        words = [dice.choice(GOOD if good ^ (dice.random() < 0.2) else BAD) for _ in range(4)]
        text = [token for word in words for token in ("a", word, dice.choice(THINGS))]
        found.append((text, CLASSES[good]))
    return found


def make() -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], dict[str, int], list[str]]:
    """Return model, loss, vocabulary and classes."""
    vocabulary = {word: id for id, word in enumerate(["<pad>", "<unk>", "a", *GOOD, *BAD, *THINGS])}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Average(len(vocabulary))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    text = reviews(400, seed=0)
    ids = torch.tensor([[vocabulary[token] for token in tokens] for tokens, _ in text])
    classes = torch.tensor([CLASSES.index(name) for _, name in text])
    for _ in range(60):
        optimizer.zero_grad()
        loss(model(ids), classes).mean().backward()
        optimizer.step()
    return model.eval(), loss, vocabulary, CLASSES


def main() -> None:
    """Attack a hundred reviews and print what it cost the classifier."""
    model, loss_of_rows, vocabulary, classes = make()
    for swaps in (1, 2):
        summary = Summary()
        victim = Classifier(model, loss_of_rows, vocabulary, classes, nearest=20)
        attacked = list(attack(victim, reviews(100, seed=1), max_swaps=swaps, summary=summary))
        figures = summary.to_dict()
        print(f"{swaps} swaps: accuracy {figures['accuracy_before']:.0%} -> {figures['accuracy']:.0%}")
    before, after = (" ".join(tokens) for tokens in (attacked[0].before, attacked[0].after))
    print(f"  {before}\n  {after}")


if __name__ == "__main__":
    main()
