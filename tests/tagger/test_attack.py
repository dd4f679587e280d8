"""The tagger under attack: what may change, losses that are exact, and what the changed text itself does."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from frostline import tagger
from frostline.adversarial.attack import Summary, attack
from frostline.adversarial.swap import Swap, swap
from frostline.tagger.attack import TaggerVictim
from frostline.tagger.data.batches import encode, pad
from frostline.tagger.data.spelling import word_shape
from frostline.vectors import Vectors

PEOPLE, PLACES = [f"pe{a}{b}" for a in "abcd" for b in "xyz"], [f"pl{a}{b}" for a in "abcd" for b in "xyz"]
FILLERS = [f"fi{a}{b}{c}" for a in "abcde" for b in "xyz" for c in "uvw"]
SIGNS = [f"sign{n}" for n in range(100)]  # the first hundred of the vectors, which stay


def _sentence(dice: random.Random) -> tagger.Sentence:
    pairs = [(dice.choice(FILLERS), "O") for _ in range(dice.randint(1, 4))]
    pairs += [("meets", "O"), (dice.choice(PEOPLE).title(), "B-person"), (dice.choice(FILLERS).upper(), "O")]
    pairs += [("near", "O"), (dice.choice(PLACES), "B-place"), ("42", "O"), (dice.choice(FILLERS), "O")]
    tokens, tags = zip(*pairs, strict=True)
    return tagger.Sentence(tokens, tags)


@pytest.fixture(scope="module", params=[0, 6], ids=["words", "characters"])
def trained(request: pytest.FixtureRequest) -> tuple[tagger.Tagger, list[tagger.Sentence]]:
    dice, draw = random.Random(0), np.random.default_rng(0)
    words = [*SIGNS, *PEOPLE[:10], *PLACES, *FILLERS, "meets", "near"]
    centres = {"pe": draw.normal(size=6), "pl": draw.normal(size=6)}
    rows = [centres.get(word[:2], np.zeros(6)) + 0.6 * draw.normal(size=6) for word in words]
    config = tagger.TaggerConfig(hidden=8, shape_width=2, batch_size=8, learning_rate=0.02, char_filters=request.param)
    train, unseen = [_sentence(dice) for _ in range(150)], [_sentence(dice) for _ in range(30)]
    run = tagger.train(train, unseen, Vectors(words, np.array(rows, dtype=np.float32)), epochs=3, config=config)
    return run.tagger, unseen


def test_the_loss_after_an_attack_is_that_of_the_changed_text(
    trained: tuple[tagger.Tagger, list[tagger.Sentence]],
) -> None:
    model, sentences = trained
    index = {tag: number for number, tag in enumerate(model.tags)}
    characters = model.model.char_cnn is not None
    changed = 0
    for found in attack(TaggerVictim(model), sentences, k=6):
        changed += bool(found.swaps)
        for tokens, loss in ((found.before, found.loss_before), (found.after, found.loss_after)):
            tags = [index[tag] for tag in found.gold]
            batch = pad([encode(tokens, model.vocabulary, tags, characters=characters)])
            with torch.no_grad():
                features = model.model.read(batch.rows, batch.shapes, batch.lengths, batch.spellings)
                expected = model.model.head.loss(features, batch.tags, batch.lengths)
            assert loss == pytest.approx(expected.item(), abs=1e-4)
        assert found.loss_after >= found.loss_before
        assert found.predicted_after == model.predict([found.after])[0]
    assert changed > 20


def test_entities_frequent_words_numbers_and_shapes_stay(
    trained: tuple[tagger.Tagger, list[tagger.Sentence]],
) -> None:
    model, sentences = trained
    swaps = 0
    for found in attack(TaggerVictim(model), sentences, max_swaps=3, k=8):
        assert len(found.swaps) <= 3
        for position, old, new in found.swaps:
            swaps += 1
            assert found.gold[position] == "O"
            assert word_shape(old) == word_shape(new)
            assert old not in SIGNS
            assert new.lower() not in SIGNS
            assert old != "42"
            assert new.lower().isalpha()
    assert swaps > 60


def _random_swaps(*arguments: object, **options: object) -> Swap:
    """Swaps drawn at random: every allowed one is tried, under a loss that is noise."""
    loss_fn, module, ids = arguments
    noise = torch.Generator().manual_seed(0)

    def losses(rows: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        if torch.equal(rows, ids):
            return loss_fn(rows, which) * 0
        changed = (rows != ids[which]).sum(1)
        return module(rows).sum((1, 2)) * 0 + changed + torch.rand(len(which), generator=noise)

    return swap(losses, module, ids, **options | {"k": None})


def test_an_attack_costs_more_than_random_swaps_of_the_same_words(
    trained: tuple[tagger.Tagger, list[tagger.Sentence]],
) -> None:
    model, sentences = trained
    victim = TaggerVictim(model)
    figures = []
    for search in (swap, _random_swaps):
        summary = Summary()
        for _ in attack(victim, sentences, summary=summary, search=search):
            pass
        figures.append(summary.to_dict())
    attacked, random_ = figures
    assert attacked["accuracy_before"] == random_["accuracy_before"] > 0.9
    assert attacked["accuracy"] < random_["accuracy"]
    assert attacked["success"] > random_["success"]


def test_without_gold_the_attack_is_on_the_first_prediction_and_empty_sentences_pass(
    trained: tuple[tagger.Tagger, list[tagger.Sentence]],
) -> None:
    model, sentences = trained
    texts = [(list(sentences[0].tokens), None), ([], None), (["42"], None)]
    found = list(attack(TaggerVictim(model), texts, k=6))
    assert found[0].target == model.predict([sentences[0].tokens])[0]
    assert (found[1].after, found[1].success, found[1].passes) == ([], False, 0)
    assert found[2].after == ["42"]
    assert [item.before for item in found] == [tokens for tokens, _ in texts]


def test_an_attack_leaves_the_tagger_as_it_is(trained: tuple[tagger.Tagger, list[tagger.Sentence]]) -> None:
    model, sentences = trained
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    assert any(found.swaps for found in attack(TaggerVictim(model), sentences[:5], k=4))
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert not model.model.training
