"""Attacks at drawn moments of training runs: each run ends like the undisturbed one, bit for bit.

Three models that people train: the word2vec program of the examples, with its sampled negatives; the tagger, with
dropout and a table of which rows learn; a Llama, with tied weights and new tokens that learn.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.adversarial import Allowed, perturb, swap

PLACEMENTS = 40
MOMENTS = ["before the forward", "before the backward", "before the step", "after the step"]
STEPS = 6


class Run:
    """A training run of a model: `step` yields at each moment at which it may be attacked."""

    model: nn.Module
    table: nn.Module

    def __init__(self) -> None:
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.01)
        self.losses: list[Tensor] = []

    def batch(self) -> Any:
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def swapped(self, batch: Any) -> Tensor:
        """Attack the words of a batch; return the ids afterwards."""
        raise NotImplementedError

    def step(self) -> Iterator[tuple[str, Any]]:
        batch = self.batch()
        yield MOMENTS[0], batch
        loss = self.loss(batch)
        yield MOMENTS[1], batch
        self.optimizer.zero_grad()
        loss.backward()
        yield MOMENTS[2], batch
        self.optimizer.step()
        self.losses.append(loss.detach())
        yield MOMENTS[3], batch

    def end(self) -> list[Tensor]:
        state = [value.clone() for value in self.model.state_dict().values()]
        moments = [torch.as_tensor(v) for s in self.optimizer.state.values() for v in s.values()]
        return [*state, *moments, torch.stack(self.losses), torch.rand(3)]


class Word2Vec(Run):
    """The CBOW program of examples/cbow_attack.py."""

    def __init__(self) -> None:
        path = Path(__file__).resolve().parents[2] / "examples" / "cbow_attack.py"
        spec = importlib.util.spec_from_file_location("cbow_attack", path)
        assert spec is not None
        assert spec.loader is not None
        program = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(program)
        torch.manual_seed(0)
        self.windows = torch.randint(30, (200, 5))
        self.model = program.CBOW(self.windows.flatten().bincount(minlength=30))
        self.table = self.model.context
        super().__init__()

    def batch(self) -> Tensor:
        return self.windows[torch.randint(len(self.windows), (16,))]

    def loss(self, batch: Tensor) -> Tensor:
        return self.model(batch[:, 1:], batch[:, 0])

    def swapped(self, batch: Tensor) -> Tensor:
        def losses(ids: Tensor, which: Tensor) -> Tensor:
            return torch.stack([self.model(row[None], batch[i, :1]) for row, i in zip(ids, which, strict=True)])

        allowed = torch.arange(30)
        return swap(losses, self.table, batch[:3, 1:], allowed=allowed, max_swaps=1, k=2).ids


class Tagger(Run):
    """The tagger's network, with dropout and a table of which some rows learn."""

    def __init__(self) -> None:
        from frostline.tagger.network.model import LSTMTagger

        torch.manual_seed(0)
        tags = ["O", "B-a", "I-a"]
        self.model = LSTMTagger(torch.randn(20, 6), tags, 8, 4, dropout=0.3, dropout_state=0.2)
        fl.train_only(self.model, {"*": fl.everything, "embed.weight": fl.rows([1, 2, 3, 8])})
        self.table = self.model.embed
        super().__init__()

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.randint(1, 20, (6, 5))
        lengths = torch.tensor([5, 4, 3, 5, 2, 1])
        return ids * (torch.arange(5) < lengths[:, None]), torch.tensor([[1, 2, 0, 0, 1]]).expand(6, 5), lengths

    def of_rows(self, ids: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        return self.model.head.loss(self.model.read(ids, (ids > 0).long() * 8, lengths), tags, lengths)

    def loss(self, batch: Any) -> Tensor:
        return self.of_rows(*batch).mean()

    def swapped(self, batch: Any) -> Tensor:
        ids, tags, lengths = batch
        allowed = Allowed(torch.arange(2, 20), nearest=6, stop=[1])
        return swap(
            lambda rows, which: self.of_rows(rows, tags[which], lengths[which]), self.table, ids, allowed=allowed, k=3
        ).ids


class Llama(Run):
    """A Llama of two layers whose table is its head, too; only the rows of two new tokens and the norms learn."""

    def __init__(self) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, attention_dropout=0.2, tie_word_embeddings=True, max_position_embeddings=16,
        )  # fmt: skip
        self.model = transformers.LlamaForCausalLM(config).train()
        self.table = self.model.get_input_embeddings()
        name = next(n for n, p in self.model.named_parameters() if p is self.table.weight)
        fl.train_only(self.model, {"*norm*": fl.everything, name: fl.rows([22, 23])})
        super().__init__()

    def batch(self) -> Tensor:
        return torch.randint(24, (3, 6))

    def loss(self, batch: Tensor) -> Tensor:
        return self.model(input_ids=batch, labels=batch).loss

    def swapped(self, batch: Tensor) -> Tensor:
        def losses(ids: Tensor, which: Tensor) -> Tensor:
            logits = self.model(input_ids=ids).logits[:, :-1]
            right = batch[which][:, 1:]
            return nn.functional.cross_entropy(logits.transpose(1, 2), right, reduction="none").mean(1)

        return swap(losses, self.table, batch, allowed=torch.arange(24), k=3, beam=2).ids


RUNS: list[Callable[[], Run]] = [Word2Vec, Tagger, Llama]


def _end(make: Callable[[], Run], seed: int | None) -> tuple[list[Tensor], int]:
    """Return the end of a run with attacks at moments drawn from `seed` (None: no attack), and how many there were."""
    run, draw, attacks = make(), random.Random(seed), 0
    torch.manual_seed(1)
    for _ in range(STEPS):
        for _, batch in run.step():
            if seed is None or draw.random() > 0.12:
                continue
            attacks += 1
            if draw.random() < 0.5:
                kind: Any = {"steps": draw.choice([1, 2]), "norm": draw.choice(["l2", "linf"])}
                found = perturb(lambda batch=batch: run.loss(batch), run.table, epsilon=0.5, **kind)
                assert (found.delta != 0).any()
            else:
                run.swapped(batch)
    return run.end(), attacks


@pytest.mark.parametrize("make", RUNS, ids=lambda make: make.__name__)
def test_a_training_run_with_attacks_between_its_steps_keeps_every_later_bit(make: Callable[[], Run]) -> None:
    undisturbed, _ = _end(make, None)
    start = make().model.state_dict().values()
    assert any(not torch.equal(value, first) for value, first in zip(undisturbed, start, strict=False))
    placed = 0
    for seed in range(PLACEMENTS):
        end, attacks = _end(make, seed)
        placed += attacks
        assert all(map(torch.equal, end, undisturbed)), seed
    assert placed > 2 * PLACEMENTS


def test_a_swap_in_these_runs_exchanges_words() -> None:
    for make in RUNS:
        run = make()
        batch = run.batch()
        ids = batch[0] if isinstance(batch, tuple) else batch
        found = run.swapped(batch)
        before = ids[: len(found), ids.shape[1] - found.shape[1] :]
        assert (found != before).any()


def test_a_plain_gradient_at_one_of_these_moments_would_change_later_bits() -> None:
    def end(look: bool) -> list[Tensor]:
        run = Tagger()
        torch.manual_seed(1)
        for step in range(STEPS):
            for moment, batch in run.step():
                if look and step == 3 and moment == MOMENTS[0]:
                    torch.autograd.grad(run.loss(batch), run.model.head.linear.weight)
        return run.end()

    assert not all(map(torch.equal, end(True), end(False)))
