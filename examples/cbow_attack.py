"""Attack word vectors during training, without changing the training.

Run:  python examples/cbow_attack.py

CBOW guesses a word from the mean of its neighbours' vectors, against words drawn at random (word2vec's negatives). The
text is Python's own language reference. Four runs from the same seed:
    undisturbed
    torch.autograd.grad at every tenth step: it only computes a gradient, and yet every later loss differs
    fl.gradients at every tenth step
    fl.adversarial.perturb at every tenth step: the attack that needs such a gradient
Then the trained vectors are attacked: how far does the loss rise when each neighbour's vector moves by a fixed length?
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

import frostline as fl

WORDS, WIDTH, NEIGHBOURS, NEGATIVES = 1_000, 32, 4, 5
STEPS, BATCH, EVERY = 300, 128, 10

Look = Callable[[Callable[[], Tensor], "CBOW"], object]


class CBOW(nn.Module):
    """Vectors of words as neighbours (`context`) and as the word to guess (`word`); weights for drawing negatives."""

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.context, self.word = nn.Embedding(len(counts), WIDTH), nn.Embedding(len(counts), WIDTH)
        nn.init.normal_(self.context.weight, std=0.3)
        nn.init.normal_(self.word.weight, std=0.3)
        self.register_buffer("weights", counts.float() ** 0.75)

    def forward(self, neighbours: Tensor, word: Tensor) -> Tensor:
        """Return the loss of guessing `word` (B,) from `neighbours` (B, 4)."""
        hidden = self.context(neighbours).mean(1)  # (B, D)
        negatives = torch.multinomial(self.get_buffer("weights"), len(word) * NEGATIVES, replacement=True)
        score = (hidden * self.word(word)).sum(-1)  # (B,)
        scores = (hidden[:, None] * self.word(negatives.view(-1, NEGATIVES))).sum(-1)  # (B, 5)
        return -(logsigmoid(score) + logsigmoid(-scores).sum(-1)).mean()


def read() -> tuple[Tensor, Tensor]:
    """Return the text as windows of five words, (N, 5), with the word to guess in the middle, and each word's count."""
    tokens = re.findall(r"[a-z]+", " ".join(topics[name] for name in sorted(topics)).lower())
    rows = {word: row for row, (word, _) in enumerate(Counter(tokens).most_common(WORDS))}
    text = torch.tensor([rows[token] for token in tokens if token in rows])
    return text.unfold(0, NEIGHBOURS + 1, 1), text.bincount()


def train(windows: Tensor, counts: Tensor, look: Look | None) -> tuple[CBOW, list[float]]:
    """Train from the same seed, with a look at every tenth step; return the model and its losses."""
    torch.manual_seed(0)
    model, losses = CBOW(counts), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(STEPS):
        batch = windows[torch.randint(len(windows), (BATCH,))]
        loss_fn = loss_on(model, batch)
        if look is not None and step % EVERY == EVERY - 1:
            look(loss_fn, model)
        optimizer.zero_grad()
        loss = loss_fn()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def loss_on(model: CBOW, batch: Tensor) -> Callable[[], Tensor]:
    """Return the loss on one batch, as a function without arguments."""
    middle = NEIGHBOURS // 2
    around = torch.cat([batch[:, :middle], batch[:, middle + 1 :]], dim=1)
    return lambda: model(around, batch[:, middle])


LOOKS: dict[str, Look] = {
    "torch.autograd.grad": lambda loss_fn, model: torch.autograd.grad(loss_fn(), model.context.weight),
    "fl.gradients": lambda loss_fn, model: fl.gradients(loss_fn, [model.context.weight, model.context]),
    "fl.adversarial.perturb": lambda loss_fn, model: fl.adversarial.perturb(
        loss_fn, model.context, epsilon=0.5, steps=3
    ),
}


def main() -> None:
    """Run it and print what it shows."""
    windows, counts = read()
    model, undisturbed = train(windows, counts, None)
    print(f"{len(windows):,} windows, {len(counts):,} words; loss {undisturbed[0]:.3f} -> {undisturbed[-1]:.3f}")
    for name, look in LOOKS.items():
        _, losses = train(windows, counts, look)
        first = next((step for step in range(STEPS) if losses[step] != undisturbed[step]), "never")
        print(f"  {name:24s} at every tenth step: losses differ from step {first}")

    loss_fn = loss_on(model, windows[:BATCH])
    length = model.context.weight.norm(dim=1).mean()
    print(f"the loss is {value(loss_fn):.3f}, a vector's length {length:.2f}; when each neighbour's vector moves")
    for epsilon in (0.1, 0.5, 1.0):
        noise = torch.randn(BATCH, NEIGHBOURS, WIDTH, generator=torch.Generator().manual_seed(0))
        with fl.adversarial.applied(model.context, epsilon * noise / noise.norm(dim=-1, keepdim=True)):
            random = value(loss_fn)
        fgm, pgd = (
            fl.adversarial.perturb(loss_fn, model.context, epsilon=epsilon, steps=steps).loss.item()
            for steps in (1, 10)
        )
        print(f"  by {epsilon}: at random {random:.3f}, one step uphill {fgm:.3f}, ten steps {pgd:.3f}")


def value(loss_fn: Callable[[], Tensor]) -> float:
    """Return the loss with the negatives that come next; the generator is restored, so they still come next."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return loss_fn().item()


if __name__ == "__main__":
    main()
