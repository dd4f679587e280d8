"""Training from sentences and vectors to a tagger: choose which rows learn, fit, then audit what stood still."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from frostline import partial
from frostline.errors import DataFileError, RunFolderError, VectorFileError
from frostline.tagger.config import Options, precision, usable
from frostline.tagger.data.batches import encoded, tag_set
from frostline.tagger.data.tags import is_iob2
from frostline.tagger.data.vocabulary import PADDING, Coverage, Vocabulary, cover
from frostline.tagger.network.model import Head, LSTMTagger
from frostline.tagger.tagger import Labelled, Tagger, one_thread
from frostline.tagger.training.callbacks import Epoch, Watcher
from frostline.tagger.training.checkpoint import Checkpoint, digest
from frostline.tagger.training.data_parallel import Team
from frostline.tagger.training.initial_table import Audit, Start, compare
from frostline.tagger.training.loop import Fit, Task
from frostline.vectors import Words

if TYPE_CHECKING:
    from frostline.vectors import Vectors

Learn = Literal["missing", "none", "all"]


@dataclass(frozen=True)
class TrainingRun:
    """What training leaves behind; `before` is what the table was made of."""

    tagger: Tagger
    plan: partial.Plan
    coverage: Coverage
    history: list[Epoch]
    best: Epoch
    audit: Audit
    before: Start

    @property
    def start(self) -> Tensor:
        """The table before training, float32, shape (rows, D): made anew at each use, from `before`.

        Its rows of pretrained words are read from the vectors that were passed: to change those, copy it first.
        """
        return self.before.table()


def train(
    train: Sequence[Labelled],
    dev: Sequence[Labelled],
    vectors: Vectors,
    *,
    also: Sequence[Sequence[Labelled]] = (),
    learn: Learn = "missing",
    epochs: int = 16,
    seed: int = 0,
    patience: int | None = None,
    options: Options | None = None,
    watch: Watcher | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 30.0,
    resume: bool = False,
    together: bool = False,
    device: str | torch.device = "cpu",
    bf16: bool = False,
) -> TrainingRun:
    """Train a tagger over `vectors`, all of which stay as they are unless `learn` says otherwise.

    Args:
        train: Sentences to learn from: (tokens, tags) pairs, tags in the BIO scheme. An I-type that continues nothing
            is learned as B-type.
        dev: Sentences that choose the epoch to keep.
        vectors: Pretrained words and their matrix, float32, shape (V, D). Never written to: the table is a copy, which
            is compared with them at the end.
        also: More labelled corpora to learn from beside `train`, each with a tag set of its own. They share the whole
            network but its last layer; theirs are dropped when training ends.
        learn: Rows of the table that learn: "missing" (training words without a vector, and <unk>), "none", or "all".
            The rest of the network always learns.
        epochs: Passes over `train`, 1 or more. Of `also` the first reads all, each next one less, the last nothing.
        seed: Same seed, same result on the same machine; the global generator is untouched.
        patience: Stop after so many epochs that brought no better F1 on dev, 1 or more; None never stops early.
        options: Sizes and rates.
        watch: Is told of each step and epoch.
        checkpoint: File to keep the state of training in, from which it can go on after it was killed.
        every: Seconds between two writings of `checkpoint`; 0 writes it after every step.
        resume: Go on from `checkpoint`, which a training with the same arguments wrote: the result is, bit for bit,
            that of a training that was never interrupted. `patience`, `watch` and `every` may differ. Of several
            processes the first writes the file, and all read it; their number has to be the same.
        together: Share each batch with the other processes of torch.distributed's group, whose backend adds tensors of
            the CPU, such as gloo; all are to be given the same, and all get the same tagger.
        device: Where to compute, such as "cuda". Everything is drawn on the CPU, so the draws are the same everywhere.
        bf16: Multiply matrices in bfloat16, if the device can; weights, gradients and the chain's sums stay float32.

    Returns:
        A `TrainingRun`, its tagger as it was after the epoch with the best F1 on dev (of equals, the lower loss), on
        the CPU.

    Raises:
        DataFileError: no sentence in a corpus, one with another number of tags than of tokens, or another tag than O,
            B-type and I-type.
        VectorFileError: no training word has a vector, which is a mismatch and not a small vocabulary.
        FrostlineError: the loss is no longer a finite number, or `device` or `bf16` cannot be used here.
        RunFolderError: `checkpoint` cannot be written, or not be resumed from.
        ValueError: `epochs`, `seed`, `patience` or `learn` out of range, or `resume` without `checkpoint`.

    Cost: one copy of the table, and of what learns one copy for the best epoch; a step costs nothing of size V
        unless `learn` is "all". Of mapped vectors (those of `vectors.load`) little is in memory at a time.
    """
    options, watch = options or Options(), watch or Watcher()
    if epochs < 1:
        raise ValueError(f"epochs: {epochs} is out of range. Pass 1 or more.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: {seed} is out of range. Pass 0 to 2**63 - 1.")
    if patience is not None and patience < 1:
        raise ValueError(f"patience: {patience} is out of range. Pass 1 or more, or None.")
    if resume and checkpoint is None:
        raise ValueError("resume: nothing to resume from. Pass checkpoint=, the file that the training wrote.")
    if learn not in ("missing", "none", "all"):
        raise ValueError(f"learn: {learn!r} is none of 'missing', 'none', 'all'.")
    device = usable(device)
    precision(device, bf16)  # refused now, if at all, and not at the first step
    _check({"train": train, "dev": dev} | {f"also[{number}]": corpus for number, corpus in enumerate(also)})
    words, corpora = vectors.words, [train, *also]
    coverage = cover((token for corpus in corpora for tokens, _ in corpus for token in tokens), words)
    if coverage.found_words == 0:
        raise VectorFileError(
            f"vectors: none of the {coverage.words:,} training words is among the {len(words):,} words of the vectors. "
            f"Check that they are of the same language and spelling."
        )
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), one_thread():  # gradients, wherever called
        torch.manual_seed(seed)
        vocabulary = Vocabulary(Words.of(coverage.missing) + words, missing=len(coverage.missing))
        before = Start.draw(vectors.matrix, vocabulary.missing, np.random.default_rng(seed))
        names, *others = [tag_set(tags for _, tags in corpus) for corpus in corpora]
        model = LSTMTagger(
            before.table(),
            names,
            options.hidden,
            options.shape_width,
            options.dropout,
            options.recurrent_dropout,
            options.chain,
            options.characters,
        )
        fixed = [] if options.forget_bias is None else model.use_one_bias(options.forget_bias)
        heads = [model.head, *(Head(2 * options.hidden, other, options.chain) for other in others)]
        for part in (model, *heads[1:]):
            part.to(device)
        selection = {
            "missing": partial.rows(vocabulary.learned),
            "none": partial.nothing,
            "all": partial.everything,
        }[learn]
        selections = dict.fromkeys(fixed, partial.nothing) | {"*": partial.everything, "embed.weight": selection}
        plan = partial.train_only(model, selections)
        tagger = Tagger(model, vocabulary, names)
        tasks = [
            Task(encoded(corpus, vocabulary, tags, characters=options.characters > 0), head)
            for corpus, tags, head in zip(corpora, [names, *others], heads, strict=True)
        ]
        parameters = [*plan.parameters(), *(weight for head in heads[1:] for weight in head.parameters())]
        team = Team(together)
        fit = Fit(tagger, tasks, parameters, epochs, options, seed, team, bf16)
        watch.start(plan, coverage)
        file = None
        if checkpoint is not None:
            given = {"epochs": epochs, "seed": seed, "learn": learn}
            where = {"processes": team.size, "device": device.type, "bf16": bf16}
            numbers = (block.numpy().data for block in before.blocks())
            pretrained = digest(chain([words.blob.data, words.offsets.data], numbers))
            data = {"data": digest([*corpora, dev]), "vectors": pretrained}
            file = Checkpoint(checkpoint, given | where | asdict(options) | data, every)
        if file is not None and resume:
            file.read(fit)
            if not team.agree(sum(epoch.tokens for epoch in fit.history) + fit.seen):  # the first writes the next
                raise RunFolderError(f"{checkpoint}: another training writes to it. End that one, and try again.")
            watch.resumed(fit.history, fit.seen)
        best = fit.run(dev, watch, patience, after_step=None if file is None or team.rank else file.write)
        model.to("cpu")
    audit = compare(before.rows, model.embed, _rows_that_learn(learn, vocabulary))
    return TrainingRun(tagger, plan, coverage, fit.history, best, audit, before)


def _check(corpora: Mapping[str, Sequence[Labelled]]) -> None:
    for name, sentences in corpora.items():
        if not any(tokens for tokens, _ in sentences):
            raise DataFileError(f"{name}: no sentence with a token in it.")
        for number, (tokens, tags) in enumerate(sentences):
            if len(tokens) != len(tags):
                raise DataFileError(f"{name}: sentence {number} has {len(tokens)} tokens and {len(tags)} tags.")
        if wrong := [repr(tag) for tag in {tag for _, tags in sentences for tag in tags} if not is_iob2(tag)]:
            raise DataFileError(f"{name}: the tag {min(wrong)}. Pass O, B-type and I-type, as read_conll gives them.")


def _rows_that_learn(learn: Learn, vocabulary: Vocabulary) -> Tensor:
    learns = torch.zeros(len(vocabulary), dtype=torch.bool)
    if learn == "missing":
        learns[vocabulary.learned] = True
    elif learn == "all":
        learns[PADDING + 1 :] = True
    return learns
