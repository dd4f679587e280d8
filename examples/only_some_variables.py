"""w1 runs after the product w2 * w3, and the product stands still.

Run:  python examples/only_some_variables.py [--out FOLDER]

The loss is mean((x @ w1 - x @ (w2 * w3))^2). Left alone, gradient descent moves all three to meet in the middle. There
are two ways to say that only w1 goes: name what learns (`fl.train_only`), or stop the gradient on the way into the
product (`fl.stop_gradient`). They give the same run, bit for bit. The picture shows the five entries of w1 arriving at
those of w2 * w3.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import frostline as fl
from frostline.partial import Selection


class Chase(nn.Module):
    """Three columns of five numbers, and the distance of w1 from w2 * w3 on a batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.w1, self.w2, self.w3 = (nn.Parameter(torch.randn(5, 1)) for _ in range(3))

    def forward(self, x: Tensor, stop: bool) -> Tensor:
        """The loss on a batch x of shape (16, 5); `stop` stops the gradient into the product."""
        product = self.w2 * self.w3
        return (x @ self.w1 - x @ (fl.stop_gradient(product) if stop else product)).pow(2).mean()


def train(learns: dict[str, Selection], stop: bool = False) -> tuple[Chase, Tensor]:
    """Sixty steps of SGD; return the model and, for each step, w1, w2 and w3 as columns: (61, 5, 3)."""
    model = Chase()
    optimizer = torch.optim.SGD(fl.train_only(model, learns).parameters(), lr=0.05)
    path = [torch.cat([model.w1, model.w2, model.w3], dim=1).detach()]
    for _ in range(60):
        loss = model(torch.randn(16, 5), stop)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path.append(torch.cat([model.w1, model.w2, model.w3], dim=1).detach())
    return model, torch.stack(path)


def draw(path: Tensor, file: Path) -> None:
    """Draw the path of every entry into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    product = path[:, :, 1] * path[:, :, 2]
    for entry in range(5):
        (line,) = left.plot(path[:, entry, 0], label=f"entry {entry}")
        left.plot(product[:, entry], linestyle="--", color=line.get_color())
        right.plot(path[:, entry, 1], color=line.get_color())
        right.plot(path[:, entry, 2], color=line.get_color(), linestyle=":")
    left.set(title="w1 (solid) arrives at w2 * w3 (dashed)", xlabel="step", ylabel="value")
    right.set(title="w2 (solid) and w3 (dotted) stand still", xlabel="step")
    left.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    print(f"picture: {file}")


def main() -> None:
    """Run it and print what it shows."""
    parser = argparse.ArgumentParser(description="w1 runs after w2 * w3, and the product stands still.")
    parser.add_argument("--out", type=Path, help="folder of the picture (a fresh temporary one if left out)")
    out = parser.parse_args().out or Path(tempfile.mkdtemp(prefix="only-some-variables-"))
    out.mkdir(parents=True, exist_ok=True)

    _, named = train({"w1": fl.everything})
    _, stopped = train({"*": fl.everything}, stop=True)
    _, plain = train({"*": fl.everything})
    for title, path in {"only w1 named": named, "product stopped": stopped, "neither": plain}.items():
        w1, w2, w3 = (path[-1] - path[0]).abs().max(dim=0).values.tolist()
        gap = (path[-1, :, 0] - path[-1, :, 1] * path[-1, :, 2]).abs().max()
        print(f"{title:16s} moved: w1 {w1:.4f}, w2 {w2:.4f}, w3 {w3:.4f}; from w1 to w2 * w3: {gap:.1e}")
    print("naming and stopping are the same run:", torch.equal(named, stopped))
    try:
        draw(named, out / "only_some_variables.png")
    except ImportError:
        print("no picture: pip install matplotlib")


if __name__ == "__main__":
    main()
