"""How fast, and how successful, is `swap` beside TextAttack's HotFlip on one classifier under the same constraints?

Both attack the same sentences of a BiLSTM over word vectors (does a tweet name an entity?), those that it classifies
right. At most two words change, the second only where one was not enough; no stop word, none twice; any word of letters
in the vocabulary may be chosen; beam 2; of the replacements the best by gradient, 4 for each row of the beam.
    frostline    fl.adversarial.swap, the sentences together
    textattack   WordSwapGradientBased(top_n=4) with BeamSearch(2), which takes one sentence after the other
Seconds are CPU seconds of the process, one thread.

Run:    pip install textattack==0.3.11, then (it needs NLTK's list of stop words)
        python benchmarks/tagger_textattack.py train.conll dev.conll vectors.txt [WORDS]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import textattack
import torch
from nltk.corpus import stopwords
from textattack.constraints.overlap import MaxWordsPerturbed
from textattack.constraints.pre_transformation import RepeatModification, StopwordModification
from textattack.models.helpers import LSTMForClassification
from textattack.models.tokenizers import GloveTokenizer
from torch import Tensor, nn

import frostline as fl

LONGEST, SENTENCES = 32, 100
PAD, UNKNOWN = "[PAD]", "[UNK]"


class Classifier(LSTMForClassification):  # type: ignore[misc]
    """A BiLSTM; of TextAttack's class, for which alone its gradient-based swaps are allowed."""

    def __init__(self, table: Tensor) -> None:
        nn.Module.__init__(self)
        self.embed = nn.Embedding.from_pretrained(table, freeze=True, padding_idx=0)
        self.encoder = nn.LSTM(table.shape[1], 75, bidirectional=True, batch_first=True)
        self.out = nn.Linear(150, 2)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the table."""
        table: nn.Embedding = self.embed
        return table

    def forward(self, ids: Tensor) -> Tensor:
        """Return the scores, (N, 2), of ids (N, T)."""
        inside = (ids != 0)[..., None]
        states = self.encoder(self.embed(ids))[0].masked_fill(~inside, -1.0)
        scores: Tensor = self.out(states.amax(1))
        return scores


def read(path: str) -> list[tuple[list[str], int]]:
    """Return the words of each sentence, those of letters alone, and whether it names an entity."""
    found = []
    for tokens, tags in fl.tagger.read_conll(path):
        words = [token.lower() for token in tokens if token.isascii() and token.isalpha()][:LONGEST]
        if len(words) > 3:
            found.append((words, int(any(tag != "O" for tag in tags))))
    return found


def attacked(
    model: Classifier, ids: Tensor, labels: Tensor, allowed: Tensor, protect: Tensor, swaps: int, k: int
) -> Tensor:
    """Return whether each sentence is classified wrong after up to `swaps` words changed."""

    def loss_fn(rows: Tensor, which: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(rows), labels[which], reduction="none")

    found = fl.adversarial.swap(
        loss_fn, model.embed, ids, allowed=allowed, protect=protect, max_swaps=swaps, k=k, beam=2
    )
    with torch.no_grad():
        return model(found.ids).argmax(1) != labels  # type: ignore[no-any-return]


def main() -> None:
    """Train, attack with both, print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 20_000
    train, dev, vectors = read(sys.argv[1]), read(sys.argv[2]), fl.vectors.load(sys.argv[3])
    words = [word for word in vectors.words[: 2 * count] if word.isascii() and word.isalpha()][:count]
    id_of = {word: id for id, word in enumerate([PAD, UNKNOWN, "[SEP]", "[CLS]", *words])}
    rows = torch.from_numpy(vectors.matrix[vectors.rows_of(words)].copy())
    table = torch.cat([torch.zeros(1, rows.shape[1]), rows.mean(0, keepdim=True).expand(3, -1), rows])

    def encoded(sentences: list[tuple[list[str], int]]) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(len(sentences), LONGEST, dtype=torch.int64)
        for row, (tokens, _) in enumerate(sentences):
            ids[row, : len(tokens)] = torch.tensor([id_of.get(token, id_of[UNKNOWN]) for token in tokens])
        return ids, torch.tensor([label for _, label in sentences])

    model = Classifier(table)
    ids, labels = encoded(train)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(6):
        for batch in torch.randperm(len(ids)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ids[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    ids, labels = encoded(dev)
    right = model(ids).argmax(1) == labels
    print(f"{len(train):,} tweets to learn from; accuracy on {len(dev):,} others {right.float().mean():.1%}")
    chosen = right.nonzero()[:SENTENCES, 0]
    stop = torch.tensor([id_of[word] for word in stopwords.words("english") if word in id_of])

    began = time.process_time()
    allowed, protect = torch.arange(4, len(id_of)), torch.isin(ids, stop)
    left = chosen  # as TextAttack does, a second word changes only where one was not enough
    for swaps, k in ((1, 4), (2, 8)):
        flipped = [
            attacked(model, ids[part], labels[part], allowed, protect[part], swaps, k) for part in left.split(100)
        ]
        left = left[~torch.cat(flipped)]
    ours = time.process_time() - began
    print(f"frostline   {len(chosen) / ours:8.1f} sentences/s  success {1 - len(left) / len(chosen):.1%}")

    tokenizer = GloveTokenizer(id_of, pad_token_id=0, unk_token_id=1, max_length=LONGEST)
    wrapper = textattack.models.wrappers.PyTorchModelWrapper(model, tokenizer)
    attack = textattack.Attack(
        textattack.goal_functions.UntargetedClassification(wrapper),
        [RepeatModification(), StopwordModification(), MaxWordsPerturbed(max_num_words=2)],
        textattack.transformations.WordSwapGradientBased(wrapper, top_n=4),
        textattack.search_methods.BeamSearch(beam_width=2),
    )
    began, successes = time.process_time(), 0
    for index in chosen.tolist():
        result: Any = attack.attack(" ".join(dev[index][0]), dev[index][1])
        successes += isinstance(result, textattack.attack_results.SuccessfulAttackResult)
    theirs = time.process_time() - began
    print(f"textattack  {len(chosen) / theirs:8.1f} sentences/s  success {successes / len(chosen):.1%}")
    print(f"ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
