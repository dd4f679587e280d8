"""Attack many sentences of a model, and count what it costs the model.

The idea: a victim says how its sentences become ids and losses and what it predicts; `swap` finds the words; then the
changed text itself, not its ids, goes through the victim again, so what is counted is what a user of it would see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from frostline.adversarial.allowed import Allowed
from frostline.adversarial.swap import LossOfRows, Swap, swap
from frostline.errors import FrostlineError

_POOL = 512  # sentences that are sorted by length together, to pad less

Prediction = Sequence[str] | str  # the tags of the tokens, or the class of the sentence


class Encoded(NamedTuple):
    """Sentences as `swap` takes them: ids (B, T), the words that stay (B, T), and the loss of rows."""

    ids: Tensor
    protect: Tensor
    loss_fn: LossOfRows


class Victim(Protocol):
    """A model that can be attacked; tokens are text."""

    module: nn.Module
    allowed: Allowed

    def encode(self, sentences: Sequence[Sequence[str]], targets: Sequence[Prediction]) -> Encoded:
        """Return sentences, none of them empty, as ids, and the loss of `targets` under the model."""
        ...

    def predict(self, sentences: Sequence[Sequence[str]]) -> list[Prediction]:
        """Return what the model predicts for each sentence."""
        ...

    def word(self, id: int, instead_of: str) -> str:
        """Return the word of `id`, written as `instead_of` is: in capitals or not."""
        ...


@dataclass(frozen=True)
class Attacked:
    """A sentence before and after.

    Attributes:
        before, after: Its tokens.
        predicted_before, predicted_after: The tags of its tokens, or its class.
        gold: What is right, if that is known.
        loss_before, loss_after: Of what is right, or of the first prediction if that is not known.
        passes: How many rows were computed for it.
    """

    before: Sequence[str]
    after: Sequence[str]
    predicted_before: Prediction
    predicted_after: Prediction
    gold: Prediction | None
    loss_before: float
    loss_after: float
    passes: int

    @property
    def swaps(self) -> list[tuple[int, str, str]]:
        """The words exchanged: position, word before, word after."""
        pairs = enumerate(zip(self.before, self.after, strict=True))
        return [(index, old, new) for index, (old, new) in pairs if old != new]

    @property
    def target(self) -> list[str]:
        """What is right, or the first prediction if that is not known; the class as a list of one."""
        return _as_list(self.predicted_before if self.gold is None else self.gold)

    @property
    def success(self) -> bool:
        """Whether it was predicted right before, and wrong after."""
        return _as_list(self.predicted_before) == self.target != _as_list(self.predicted_after)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, ready for JSON."""
        swaps = [{"position": index, "before": old, "after": new} for index, old, new in self.swaps]
        names = ("predicted_before", "predicted_after", "gold", "loss_before", "loss_after", "passes", "success")
        found = {"before": list(self.before), "after": list(self.after), "swaps": swaps}
        return found | {name: getattr(self, name) for name in names}


@dataclass
class Summary:
    """What attacks cost a model, all told. Fractions of nothing count as 0.

    Attributes:
        sentences: How many were attacked.
        seconds: How long that took.
        right: How many were predicted right before.
    """

    sentences: int = 0
    seconds: float = 0.0
    right: int = 0
    _successes: int = 0
    _words: int = 0
    _swaps: int = 0
    _passes: int = 0
    _targets: int = 0
    _hits_before: int = 0
    _hits_after: int = 0

    def add(self, sentence: Attacked) -> None:
        """Count one more sentence."""
        target, before, after = sentence.target, *map(_as_list, (sentence.predicted_before, sentence.predicted_after))
        self.sentences += 1
        self.right += before == target
        self._successes += sentence.success
        self._words += len(sentence.before)
        self._swaps += len(sentence.swaps)
        self._passes += sentence.passes
        self._targets += len(target)
        self._hits_before += sum(map(str.__eq__, before, target))
        self._hits_after += sum(map(str.__eq__, after, target))

    def to_dict(self) -> dict[str, float]:
        """Return the figures, ready for JSON.

        success: share of the sentences predicted right before that are predicted wrong after.
        accuracy_before, accuracy: share of the predictions (tags, or classes) that are right, before and after.
        words_changed: share of the words. passes: rows computed for a sentence. sentences_per_second: of the attack.
        """
        return {
            "sentences": self.sentences,
            "success": self._successes / max(1, self.right),
            "accuracy_before": self._hits_before / max(1, self._targets),
            "accuracy": self._hits_after / max(1, self._targets),
            "words_changed": self._swaps / max(1, self._words),
            "passes": self._passes / max(1, self.sentences),
            "sentences_per_second": self.sentences / self.seconds if self.seconds else 0.0,
        }


Search = Callable[..., Swap]


def attack(
    victim: Victim,
    sentences: Sequence[tuple[Sequence[str], Prediction | None]] | Iterator[tuple[Sequence[str], Prediction | None]],
    *,
    max_swaps: int = 2,
    k: int | None = 32,
    beam: int = 4,
    batch_size: int = 64,
    summary: Summary | None = None,
    search: Search = swap,
) -> Iterator[Attacked]:
    """Yield each sentence before and after an attack, in their order.

    Args:
        victim: What to attack.
        sentences: Tokens, and the right tags or class, None if unknown: then the attack is on the first prediction.
        max_swaps, k, beam: As for `swap`.
        batch_size: Sentences that are attacked together, of similar length.
        summary: Counts the sentences and the seconds, those of the attack alone.
        search: What finds the words, with the arguments of `swap`; it first asks for the losses of the sentences.
    """
    waiting = iter(sentences)
    while pool := list(islice(waiting, _POOL)):
        found: dict[int, Attacked] = {}
        order = sorted(range(len(pool)), key=lambda index: len(pool[index][0]))
        for start in range(0, len(pool), batch_size):
            group = order[start : start + batch_size]
            began = time.perf_counter()
            attacked = _attack_batch(victim, [pool[i] for i in group], max_swaps, k, beam, search)
            found |= dict(zip(group, attacked, strict=True))
            if summary is not None:
                summary.seconds += time.perf_counter() - began
        for index in range(len(pool)):
            if summary is not None:
                summary.add(found[index])
            yield found[index]


def _attack_batch(
    victim: Victim,
    batch: list[tuple[Sequence[str], Prediction | None]],
    max_swaps: int,
    k: int | None,
    beam: int,
    search: Search,
) -> list[Attacked]:
    before = [tokens for tokens, _ in batch]
    predicted = victim.predict(before)
    targets = [guess if gold is None else gold for (_, gold), guess in zip(batch, predicted, strict=True)]
    for target, guess in zip(targets, predicted, strict=True):
        if isinstance(target, str) != isinstance(guess, str):
            kinds = ("a class of a sentence", "tags of its tokens")
            given, model = kinds if isinstance(target, str) else kinds[::-1]
            raise FrostlineError(f"what is given as right is {given}, but the model predicts {model}.")
    filled = [index for index, tokens in enumerate(before) if tokens]
    after = [list(tokens) for tokens in before]
    figures = dict.fromkeys(range(len(batch)), (0.0, 0.0, 0))  # losses before and after, and passes
    if filled:
        ids, protect, loss_fn = victim.encode([before[i] for i in filled], [targets[i] for i in filled])
        options: dict[str, Any] = {"allowed": victim.allowed, "protect": protect, "k": k, "beam": beam}
        at_first: list[Tensor] = []

        def noting(rows: Tensor, which: Tensor) -> Tensor:
            losses = loss_fn(rows, which)
            if not at_first:  # a search first asks for the sentences as they are
                at_first.append(losses.detach().clone())
            return losses

        found = search(noting, victim.module, ids, max_swaps=max_swaps, **options)
        for row, position in (found.ids != ids).nonzero().tolist():
            after[filled[row]][position] = victim.word(int(found.ids[row, position]), before[filled[row]][position])
        losses = zip(at_first[0].tolist(), found.losses.tolist(), found.passes.tolist(), strict=True)
        figures |= dict(zip(filled, losses, strict=True))
    again = victim.predict(after)
    return [Attacked(before[i], after[i], predicted[i], again[i], batch[i][1], *figures[i]) for i in range(len(batch))]


def _as_list(prediction: Prediction) -> list[str]:
    return [prediction] if isinstance(prediction, str) else list(prediction)
