"""Any model over looked-up words as a victim of `attack`: a classifier of sentences, or of their tokens.

Letters used for shapes in this file:
    B  sentences       T  tokens of the longest       N  rows computed together       K  classes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from frostline.adversarial.allowed import Allowed
from frostline.adversarial.attack import Encoded, Prediction
from frostline.errors import FrostlineError

PAD, UNKNOWN = "<pad>", "<unk>"
IGNORED = -100  # the class of padding; cross_entropy ignores it
_NEAREST = 50


class Classifier:
    """A model of which three things are known: itself, its loss, and its vocabulary.

    Args:
        model: Takes ids, int64, shape (N, T), padded with the id of `<pad>`; returns scores of shape (N, K), for a
            class of each sentence, or (N, T, K), for one of each token. It looks words up in one nn.Embedding.
        loss: Takes scores and classes, int64, shape (N,) or (N, T), -100 at padding; returns a loss a row, (N,).
        vocabulary: The id of each word, `<pad>` and `<unk>` among them.
        classes: Names of the K classes. None: their numbers.
        nearest: A word is replaced by one of so many nearest to it, all of them letters alone.

    Raises:
        FrostlineError: There is not exactly one table of as many rows as the vocabulary has words.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        vocabulary: Mapping[str, int],
        classes: Sequence[str] | None = None,
        nearest: int = _NEAREST,
    ) -> None:
        for word in (PAD, UNKNOWN):
            if word not in vocabulary:
                raise FrostlineError(f"vocabulary: it has no {word}. Give it an id.")
        most = max(vocabulary.values()) + 1
        tables = [each for each in model.modules() if isinstance(each, nn.Embedding) and each.num_embeddings == most]
        if len(tables) != 1:
            raise FrostlineError(
                f"model: {len(tables)} nn.Embedding with {most} rows, one for each id of the vocabulary. It needs one."
            )
        self.module: nn.Module = tables[0]
        self._model, self._loss, self._ids = model, loss, vocabulary
        self._words = {id: word for word, id in vocabulary.items()}
        self._classes = None if classes is None else list(classes)
        letters = [id for word, id in vocabulary.items() if word.isalpha()]
        self.allowed = Allowed(torch.tensor(letters), nearest=nearest, stop=[vocabulary[PAD], vocabulary[UNKNOWN]])

    def encode(self, sentences: Sequence[Sequence[str]], targets: Sequence[Prediction]) -> Encoded:
        """Return sentences as ids, the positions that stay (no letters, or a class that is not O), and their losses."""
        ids = self._encoded(sentences)
        protect = torch.ones_like(ids, dtype=torch.bool)
        for row, (tokens, target) in enumerate(zip(sentences, targets, strict=True)):
            tags = ["O"] * len(tokens) if isinstance(target, str) or "O" not in (self._classes or ()) else target
            stays = [tag != "O" or not token.isalpha() for token, tag in zip(tokens, tags, strict=True)]
            protect[row, : len(stays)] = torch.tensor(stays)
        classes = [
            torch.tensor([self._number(each) for each in ([target] if isinstance(target, str) else target)])
            for target in targets
        ]
        right = nn.utils.rnn.pad_sequence(classes, batch_first=True, padding_value=IGNORED).to(ids.device)
        if isinstance(targets[0], str):
            right = right[:, 0]
        model, loss = self._model, self._loss
        return Encoded(ids, protect, lambda rows, which: loss(model(rows), right[which]))

    def predict(self, sentences: Sequence[Sequence[str]]) -> list[Prediction]:
        """Return the class of each sentence, or the classes of its tokens."""
        modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()
        try:
            with torch.no_grad():
                best = self._model(self._encoded(sentences)).argmax(-1).tolist()
        finally:
            for module, mode in modes:
                module.training = mode
        if best and isinstance(best[0], int):
            return [self._name(number) for number in best]
        return [
            [self._name(number) for number in row[: len(tokens)]] for row, tokens in zip(best, sentences, strict=True)
        ]

    def word(self, id: int, instead_of: str) -> str:
        """Return the word of `id`, in capitals as `instead_of` is where that is the same id."""
        word = self._words[id]
        cased = word.upper() if instead_of.isupper() else word.title() if instead_of.istitle() else word
        return cased if self._id(cased) == id else word

    def _encoded(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        rows = [torch.tensor([self._id(token) for token in tokens] or [self._ids[PAD]]) for tokens in sentences]
        device = next(self._model.parameters()).device
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._ids[PAD]).to(device)

    def _id(self, token: str) -> int:
        return self._ids.get(token, self._ids.get(token.lower(), self._ids[UNKNOWN]))

    def _name(self, number: int) -> str:
        return str(number) if self._classes is None else self._classes[number]

    def _number(self, name: str) -> int:
        names = [str(number) for number in range(int(name) + 1)] if self._classes is None else self._classes
        if name not in names:
            raise FrostlineError(f"{name!r} is none of the classes of the model: {', '.join(names)}.")
        return names.index(name)
