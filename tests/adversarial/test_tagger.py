"""A trained tagger is misled by a small change of its word vectors; the attack does not change its training."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline import tagger
from frostline.tagger.data.batches import NO_TAG, Batch, encode, pad
from frostline.vectors import Vectors

PLACES, PEOPLE, PLAIN = (
    [f"place{i}" for i in range(12)],
    [f"person{i}" for i in range(12)],
    ["meets", "in", "near", "."],
)
EPSILON = 1.5


def _sentence(dice: random.Random) -> tagger.Sentence:
    pairs = [(dice.choice(PEOPLE), "B-person"), (dice.choice(PLAIN), "O"), (dice.choice(PLACES), "B-place")]
    pairs += [(dice.choice(PLAIN), "O") for _ in range(dice.randrange(3))]
    tokens, tags = zip(*pairs, strict=True)
    return tagger.Sentence(tokens, tags)


@pytest.fixture(scope="module")
def trained() -> tuple[tagger.TrainingRun, Batch]:
    """A tagger that has learned, and a batch of sentences it has not seen; the last two people have no vectors."""
    dice, draw = random.Random(0), np.random.default_rng(0)
    known = [*PEOPLE[:10], *PLACES, *PLAIN]
    centres = {"person": draw.normal(size=6), "place": draw.normal(size=6)}
    rows = [centres.get(word.rstrip("0123456789"), np.zeros(6)) + 0.3 * draw.normal(size=6) for word in known]
    sentences, unseen = [_sentence(dice) for _ in range(120)], [_sentence(dice) for _ in range(20)]
    config = tagger.TaggerConfig(hidden=8, shape_width=2, dropout=0.2, batch_size=8, learning_rate=0.02)
    vectors = Vectors(known, np.array(rows, dtype=np.float32))
    run = tagger.train(sentences, unseen, vectors, epochs=3, seed=0, config=config)
    tags = {tag: index for index, tag in enumerate(run.tagger.tags)}
    encoded = [
        encode(sentence.tokens, run.tagger.vocabulary, [tags[tag] for tag in sentence.tags]) for sentence in unseen
    ]
    return run, pad(encoded)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    scores = model(batch.rows, batch.shapes, batch.lengths)
    return nn.functional.cross_entropy(scores.flatten(0, 1), batch.tags.flatten(), ignore_index=NO_TAG)


def test_the_loss_rises_much_more_than_in_a_random_direction_of_the_same_length(
    trained: tuple[tagger.TrainingRun, Batch],
) -> None:
    run, batch = trained
    model = copy.deepcopy(run.tagger.model).eval()
    assert run.best.dev_f1 > 0.9
    plain = _loss(model, batch)
    fgm, pgd = (
        fl.adversarial.perturb(lambda: _loss(model, batch), model.embed, epsilon=EPSILON, steps=steps)
        for steps in (1, 10)
    )
    padding = batch.rows == 0
    assert padding.any()
    assert (fgm.delta[padding] == 0).all()
    assert torch.allclose(fgm.delta[~padding].norm(dim=-1), torch.tensor(EPSILON))
    rises = []
    for seed in range(10):
        noise = torch.randn(fgm.delta.shape, generator=torch.Generator().manual_seed(seed)) * ~padding[..., None]
        with fl.adversarial.applied(model.embed, EPSILON * nn.functional.normalize(noise, dim=-1)):
            rises.append(_loss(model, batch) - plain)
    assert fgm.loss - plain > 3 * max(rises)
    assert pgd.loss > fgm.loss


def test_training_with_an_attack_before_every_step_is_training_without(
    trained: tuple[tagger.TrainingRun, Batch],
) -> None:
    run, batch = trained

    def train_on(attacked: bool) -> tuple[list[float], dict[str, Tensor], list[float]]:
        torch.manual_seed(1)
        model = copy.deepcopy(run.tagger.model).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        losses, under = [], []
        for _ in range(6):
            if attacked:
                found = fl.adversarial.perturb(lambda: _loss(model, batch), model.embed, epsilon=EPSILON, steps=2)
                under.append(found.loss.item())
            optimizer.zero_grad()
            loss = _loss(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, model.state_dict(), under

    losses, state, _ = train_on(attacked=False)
    same_losses, same_state, under = train_on(attacked=True)
    assert losses == same_losses
    assert all(torch.equal(state[name], same_state[name]) for name in state)
    assert all(attack > loss for attack, loss in zip(under, losses, strict=True))
    assert not torch.equal(state["embed.weight"], run.tagger.model.state_dict()["embed.weight"])
