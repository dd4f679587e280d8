"""A tagger whose embedding matrix moves though "nothing updates it".

Run:  python examples/tagger_embedding_moves.py

A bidirectional LSTM tags words by their vectors. No line of the training loop mentions the table of vectors, and yet
it moves: a lookup is an operation like any other, the gradient flows through it to the rows that the batch used, and
`model.parameters()` hands the table to the optimizer. To freeze it, say so in a plan.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frostline as fl
from frostline.partial.selections import Selection

WORDS = ["<pad>", "Ada", "met", "Grace", "in", "Oslo", "today", "Paris", "unseen"]
SENTENCES = torch.tensor([[1, 2, 3, 4, 5, 6], [3, 2, 1, 6, 0, 0]])
TAGS = torch.tensor([[1, 0, 1, 0, 2, 0], [1, 0, 1, 0, 0, 0]])  # 1 person, 2 place, 0 neither


class Tagger(nn.Module):
    """Vectors of words, a bidirectional LSTM, and a score for each tag."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), 4, padding_idx=0)
        self.lstm = nn.LSTM(4, 8, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (sentences, words) -> scores (sentences, words, tags)."""
        scores: Tensor = self.head(self.lstm(self.embed(ids))[0])
        return scores


def train(learns: dict[str, Selection]) -> tuple[Tensor, Tensor | None, list[float]]:
    """Return how far each row of the table moved in ten steps, the norm of its first gradient, and the losses."""
    torch.manual_seed(0)
    model = Tagger()
    start = model.embed.weight.detach().clone()
    optimizer = torch.optim.Adam(fl.train_only(model, learns).parameters(), lr=0.01)
    gradient, losses = None, []
    for step in range(10):
        loss = nn.functional.cross_entropy(model(SENTENCES)[SENTENCES != 0], TAGS[SENTENCES != 0])
        optimizer.zero_grad()
        loss.backward()
        if step == 0 and model.embed.weight.grad is not None:
            gradient = model.embed.weight.grad.norm(dim=1)
        optimizer.step()
        losses.append(loss.item())
    return (model.embed.weight.detach() - start).norm(dim=1), gradient, losses


def main() -> None:
    """Run it and print what it shows."""
    moved, gradient, losses = train({"*": fl.everything})
    assert gradient is not None
    print("everything learns: the table moves, in the rows that were used")
    for word, norm, distance in zip(WORDS, gradient.tolist(), moved.tolist(), strict=True):
        print(f"  {word:7s} first gradient {norm:.4f}  moved {distance:.4f}")
    print(f"  loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    moved, gradient, losses = train({"*": fl.everything, "embed.weight": fl.nothing})
    print(f"with embed.weight: fl.nothing, gradient {gradient}, the furthest row moved {moved.max():.4f}")
    print(f"  loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
