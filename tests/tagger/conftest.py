"""A tiny language in which names of people and places follow rules that a tagger can learn from vectors alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

from frostline.tagger import Callback, Sentence, TaggerConfig
from frostline.vectors import Vectors

PEOPLE = [f"person{i}" for i in range(40)]
PLACES = [f"place{i}" for i in range(40)]
PLAIN = ["meets", "sees", "in", "near", "today", "again", ".", "and"]


class Stop(Callback):
    """Interrupts training after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def batch(self, tokens: int) -> None:
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Toy:
    """Sentences of the tiny language, vectors for most of its words, and a config that trains quickly."""

    train: list[Sentence]
    dev: list[Sentence]
    vectors: Vectors
    config: TaggerConfig
    stop: type[Stop] = Stop


def _sentence(dice: random.Random, people: list[str], places: list[str]) -> Sentence:
    pairs = [(dice.choice(people).capitalize(), "B-person")]
    if dice.random() < 0.3:
        pairs.append((dice.choice(people).capitalize(), "I-person"))
    pairs.append((dice.choice(PLAIN), "O"))
    pairs.append((dice.choice(places), "B-place"))
    pairs += [(dice.choice(PLAIN), "O") for _ in range(dice.randrange(4))]
    tokens, tags = zip(*pairs, strict=True)
    return Sentence(tokens, tags)


@pytest.fixture(scope="session")
def toy() -> Toy:
    """The dev sentences hold only names that training never saw, but that have vectors; ten names have none."""
    dice, draw = random.Random(0), np.random.default_rng(0)
    words = [*PEOPLE[:35], *PLACES[:35], *PLAIN]
    centres = {"person": draw.normal(size=8), "place": draw.normal(size=8)}
    rows = [centres.get(word.rstrip("0123456789"), np.zeros(8)) + 0.3 * draw.normal(size=8) for word in words]
    return Toy(
        train=[_sentence(dice, PEOPLE[15:], PLACES[15:]) for _ in range(200)],
        dev=[_sentence(dice, PEOPLE[:15], PLACES[:15]) for _ in range(40)],
        vectors=Vectors(words, np.array(rows, dtype=np.float32)),
        config=TaggerConfig(hidden=16, shape_width=4, dropout=0.2, batch_size=8, learning_rate=0.02),
    )
