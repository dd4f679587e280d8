"""Three run folders: of a Recorder, with hostile words; of a tagger; with an explanation and a confusion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import frostline as fl
from frostline import tagger
from frostline.record import RowChanges, describe_run
from frostline.tagger.training.run_folder import write_run_folder
from frostline.vectors import Vectors

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><b>bold</b>",
    "&amp;",
    "a\"b'c",
    "$x$",
    "%{x}",
    "two\nlines",
    " ",
    "caf\udce9",
]


class Model(torch.nn.Module):
    """Seven named tensors, three modules deep."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(40, 4)
        self.body = torch.nn.ModuleDict({"first": torch.nn.Linear(4, 4), "second": torch.nn.Linear(4, 4)})
        self.head = torch.nn.Linear(4, 2)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "recorded"
    torch.manual_seed(0)
    model = Model()
    words = {word: row for row, word in enumerate(["frost", "line", *HOSTILE])}
    plan = fl.train_only(model, {"head.*": fl.everything, "embed.weight": fl.rows(list(words.values()))})
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.05)
    describe_run(folder, title="Some <words> & a bias", facts={"<seed>": "<i>0 & 1</i>"}, plan=plan)
    watched = {
        "words": (model.embed.weight, words),
        "bias": model.head.bias,
        "norm": lambda: model.head.weight.norm(),
    }
    with fl.Recorder(folder, watched) as recorder:
        recorder()
        for _ in range(20):
            rows = torch.randint(0, 40, (16,))
            loss = torch.nn.functional.cross_entropy(model.head(model.embed(rows)), rows % 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder(loss=loss)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tagger"
    sentences = [(["Ada", "met", name, "today"], ["B-p", "O", "B-p", "O"]) for name in ("Grace", "Alan", "<b>", "Kurt")]
    vectors = Vectors(
        ["met", "today", "ada", "then"], torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).numpy()
    )
    run = tagger.train(sentences, sentences, vectors, epochs=3, config=tagger.TaggerConfig(hidden=8, unk_dropout=0.0))
    run.tagger.save(folder)
    write_run_folder(folder, run, title="A tagger", facts={"sentences": "4"}, dev=sentences)
    return folder


class Explained:
    """Stands in for an Explanation."""

    def to_dict(self) -> dict[str, object]:
        return {
            "embed.weight": {"verdict": "learns in part", "reason": "3 of 40 rows", "where": None, "notes": []},
            "body.first.weight": {"verdict": "cut", "reason": "detach <here>", "where": "model.py:31", "notes": []},
            "body.first.bias": {"verdict": "frozen", "reason": "requires_grad is False", "where": None, "notes": []},
            "head.weight": {"verdict": "learns", "reason": "", "where": None, "notes": []},
        }


@pytest.fixture(scope="session")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "explained"
    before, after = torch.zeros(30, 3), torch.arange(90.0).reshape(30, 3)
    words = [f"word{row}" for row in range(30)]
    after[20:] = 0
    counts = [[3, 1, 0], [0, 2, 1], [1, 0, 0]]
    describe_run(
        folder,
        explanation=Explained(),
        audit={"frozen_compared": 30, "frozen_moved": 2, "learned_rows": 20, "learned_rows_moved": 20},
        confusion={
            "types": ["LOC", "<b>"],
            "rows": "gold",
            "columns": "predicted",
            "counts": counts,
        },
        curves=[{"run": run, "epoch": epoch, "loss": 1 / epoch} for run in ("a", "b/..") for epoch in (1, 2, 3)],
        row_changes=RowChanges.from_tables(words, before, after, torch.arange(20), range(20, 30)),
    )
    return folder
