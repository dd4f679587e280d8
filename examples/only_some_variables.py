"""w1 learns to equal the product w2 * w3, and the product stays frozen.

Run:  python examples/only_some_variables.py [--out FOLDER]

The loss is mean((x @ w1 - x @ (w2 * w3))^2). By default gradient descent moves all three vectors. There are two ways to
train w1 alone: name what learns (`fl.train_only`), or stop the gradient into the product (`fl.stop_gradient`). Both
give the same run, bit for bit. A Recorder records each vector; the picture is drawn from its record and shows the five
entries of w1 converging to those of w2 * w3.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

import frostline as fl
from frostline.partial import Selection
from frostline.record import Recorded, describe_run, read_record


class Chase(nn.Module):
    """Three columns of five values; the loss is the distance of w1 from w2 * w3 on a batch."""

    def __init__(self, columns: Iterable[Tensor]) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Parameter(column.clone()) for column in columns)

    def forward(self, x: Tensor, stop: bool) -> Tensor:
        """Return the loss on a batch x of shape (16, 5); `stop` stops the gradient into the product."""
        product = self.w2 * self.w3
        return (x @ self.w1 - x @ (fl.stop_gradient(product) if stop else product)).pow(2).mean()


def train(
    columns: Iterable[Tensor], batches: Tensor, learns: dict[str, Selection], run_folder: Path, stop: bool = False
) -> dict[str, Recorded]:
    """Take one SGD step for each batch, (steps, 16, 5); return what was recorded before and after each."""
    model = Chase(columns)
    plan = fl.train_only(model, learns)
    optimizer = torch.optim.SGD(plan.parameters(), lr=0.1)
    describe_run(run_folder, plan=plan)
    watched = {"w1": model.w1, "w2": model.w2, "w3": model.w3, "w2 * w3": lambda: model.w2 * model.w3}
    with fl.Recorder(run_folder, watched) as recorder:
        recorder()
        for x in batches:
            loss = model(x, stop)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder(loss=loss)
    return read_record(run_folder)


def draw(record: dict[str, Recorded], path: Path) -> None:
    """Draw the trajectory of every entry into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    values = {name: record[name].values.flatten(1) for name in ("w1", "w2", "w3", "w2 * w3")}  # (steps + 1, 5)
    for entry in range(5):
        (line,) = left.plot(record["w1"].steps, values["w1"][:, entry], label=f"entry {entry}")
        left.plot(record["w2 * w3"].steps, values["w2 * w3"][:, entry], linestyle="--", color=line.get_color())
        right.plot(record["w2"].steps, values["w2"][:, entry], color=line.get_color())
        right.plot(record["w3"].steps, values["w3"][:, entry], color=line.get_color(), linestyle=":")
    left.set(title="w1 (solid) converges to w2 * w3 (dashed)", xlabel="step", ylabel="value")
    right.set(title="w2 (solid) and w3 (dotted) stay frozen", xlabel="step")
    left.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")


def main() -> None:
    """Train three times and print what moved."""
    parser = argparse.ArgumentParser(description="w1 learns to equal w2 * w3, and the product stays frozen.")
    parser.add_argument("--out", type=Path, help="folder of the runs (a fresh temporary one if left out)")
    out = parser.parse_args().out or Path(tempfile.mkdtemp(prefix="only-some-variables-"))

    torch.manual_seed(1)
    columns, batches = torch.randn(3, 5, 1).unbind(), torch.randn(200, 16, 5)
    runs = {
        "only w1 named": train(columns, batches, {"w1": fl.everything}, out / "named"),
        "product stopped": train(columns, batches, {"*": fl.everything}, out / "stopped", stop=True),
        "neither": train(columns, batches, {"*": fl.everything}, out / "neither"),
    }
    for title, record in runs.items():
        w1, w2, w3 = (
            float((record[name].values[-1] - record[name].values[0]).abs().max()) for name in ("w1", "w2", "w3")
        )
        gap = (record["w1"].values[-1] - record["w2 * w3"].values[-1]).abs().max()
        print(f"{title:16s} moved: w1 {w1:.4f}, w2 {w2:.4f}, w3 {w3:.4f}; from w1 to w2 * w3: {gap:.1e}")
    named, stopped = runs["only w1 named"], runs["product stopped"]
    same = all(torch.equal(named[name].values, stopped[name].values) for name in named)
    print("naming and stopping are the same run:", same)
    try:
        draw(named, out / "only_some_variables.png")
    except ImportError:
        print("no picture: pip install matplotlib")
    print(f"report: frostline report {out / 'named'}")


if __name__ == "__main__":
    main()
