"""Known words keep their vectors, missing words learn; then the same on a plain matrix, with a mask.

Run:  python examples/known_and_missing_words.py

First a layer for padding and nine words, six of which have a pretrained vector. It is a plain nn.Embedding whose weight
is a partial tensor: 200 steps of AdamW with weight decay move the three missing words and no bit of the others.
With a file of real vectors the first line would be `vectors = fl.vectors.load("glove.6B.50d.txt.gz")`.

Then the mask: a 10 x 5 matrix through `fl.stop_gradient`, and the gradient of each of its ten rows.
"""

from __future__ import annotations

import torch

import frostline as fl

WORDS = ["<pad>", "the", "ice", "frostline", "melts", "in", "permafrosty", "spring", "brr", "snow"]
KNOWN = ["the", "ice", "melts", "in", "spring", "snow"]


def train_layer() -> None:
    """Train a layer of nine words, six of them known, and print which rows moved."""
    vectors = fl.vectors.Vectors(KNOWN, torch.randn(len(KNOWN), 4).numpy())
    embed = fl.vectors.embedding(WORDS, vectors, learn="missing", padding_idx=0)
    head = torch.nn.Linear(4, 2)
    print(f"the layer: {embed}, its weight: {embed.weight!r}")

    before = embed.weight.detach().clone()
    learns = [p for p in [*embed.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=0.1, weight_decay=0.1)
    ids, target = torch.arange(len(WORDS)), torch.arange(len(WORDS)) % 2
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(head(embed(ids)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    after = embed.weight.detach().clone()
    for word, old, new in zip(WORDS, before, after, strict=True):
        known = "known" if word in KNOWN else "padding" if word == "<pad>" else "missing"
        moved = "unchanged, bit for bit" if torch.equal(old, new) else f"moved by {(new - old).norm():.2f}"
        print(f"  {word:12s} {known:8s} {moved}")


def apply_mask() -> None:
    """Stop the gradient of four rows of a matrix, and print the gradient of all ten."""
    matrix = torch.ones(10, 5, requires_grad=True)
    learns = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0, 1], dtype=torch.bool)
    parm = torch.tensor([[0.5], [-1.0], [2.0], [0.25], [-0.75]])

    gated = fl.stop_gradient(matrix, where=~learns[:, None])
    (gated @ parm).sum().backward()

    assert matrix.grad is not None
    print("the mask: the values pass unchanged:", torch.equal(gated, matrix))
    for row, gradient in enumerate(matrix.grad):
        print(f"  row {row} {'learns' if learns[row] else 'frozen'}  gradient {gradient.tolist()}")


def main() -> None:
    """Run it and print what it shows."""
    torch.manual_seed(0)
    train_layer()
    apply_mask()


if __name__ == "__main__":
    main()
