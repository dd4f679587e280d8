"""Train a tagger from sentences and vectors: choose which rows learn, train, then audit the frozen ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from frostline import partial
from frostline.errors import DataFileError, RunFolderError, VectorFileError
from frostline.tagger.config import TaggerConfig, check_device, precision
from frostline.tagger.data.batches import encode_corpus, tag_set
from frostline.tagger.data.tags import is_iob2_tag
from frostline.tagger.data.vocabulary import PADDING, Vocabulary
from frostline.tagger.network.model import Head, LSTMTagger
from frostline.tagger.scoring.scores import Score
from frostline.tagger.tagger import Labelled, Tagger, one_thread
from frostline.tagger.training.callbacks import Callback, Epoch
from frostline.tagger.training.checkpoint import Checkpoint, digest
from frostline.tagger.training.data_parallel import DataParallelGroup
from frostline.tagger.training.initial_table import Audit, InitialTable, compare
from frostline.tagger.training.loop import TrainingLoop
from frostline.tagger.training.optimizer import Optimizer
from frostline.tagger.training.sampler import BatchSampler, Corpus
from frostline.vectors import Coverage, Vectors, Words, cover
from frostline.vectors.sources import Source, as_vectors

Learn = Literal["missing", "none", "all"]


@dataclass(frozen=True)
class TrainingRun:
    """The result of a training run.

    Attributes:
        tagger: The tagger, on the CPU.
        plan: What learned, printable.
        coverage: Which training words the vectors have.
        history: Every epoch.
        best: The epoch whose weights the tagger has.
        dev_score: Score of the tagger on dev.
        finished: Whether training came to its end; False after `Callback.stop`.
        audit: The table after training compared with `initial_table`.
        initial_table: The table before training; its pretrained rows are read from the vectors that were passed.
    """

    tagger: Tagger
    plan: partial.Plan
    coverage: Coverage
    history: list[Epoch]
    best: Epoch
    finished: bool
    dev_score: Score
    audit: Audit
    initial_table: InitialTable


def train(
    train: Sequence[Labelled],
    dev: Sequence[Labelled],
    vectors: Source | None,
    *,
    auxiliary: Sequence[Sequence[Labelled]] = (),
    learn: Learn = "missing",
    epochs: int = 16,
    seed: int = 0,
    patience: int | None = None,
    config: TaggerConfig | None = None,
    callback: Callback | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 30.0,
    resume: bool | str | os.PathLike[str] = False,
    distributed: bool = False,
    device: str | torch.device = "cpu",
    bf16: bool = False,
) -> TrainingRun:
    """Train a tagger over `vectors`, all of which stay as they are unless `learn` says otherwise.

    Args:
        train: Sentences to learn from: (tokens, tags) pairs, tags in the BIO scheme. An I-type that continues nothing
            is learned as B-type.
        dev: Sentences that choose the epoch to keep.
        vectors: Pretrained words and their matrix, float32, shape (V, D), or a path, a dict or gensim's KeyedVectors.
            Never written to: the table is a copy, and the audit compares it with them at the end. None: every training
            word starts at random, with `config.dimension` numbers, and learns.
        auxiliary: More labelled corpora to learn from, each with a tag set of its own. They share the whole network but
            its last layer; theirs are dropped when training ends.
        learn: Rows of the table that learn: "missing" (training words without a vector, and <unk>), "none", or "all".
            The rest of the network always learns.
        epochs: Passes over `train`, 1 or more. The first reads all of `auxiliary`, each next one less, the last none.
        seed: Same seed, same result on the same machine; the global generator is untouched.
        patience: Stop after this many epochs without a better F1 on dev, 1 or more; None never stops early.
        config: Sizes and rates.
        callback: Its methods are called at every step and epoch.
        checkpoint: File for the state of training, from which a run that was killed can be resumed.
        checkpoint_every: Seconds between two writes of `checkpoint`; 0 writes it after every step. It is also written
            after the first epoch and at the end.
        resume: Continue from `checkpoint`, or from the file of this name, which a run with the same arguments wrote:
            the result is, bit for bit, that of a run that was never interrupted. `patience`, `callback` and
            `checkpoint_every` may differ. Of several processes the first writes the file, and all read it; their number
            has to be the same.
        distributed: Share each batch with the other processes of torch.distributed's default group, whose backend
            reduces tensors of the CPU, such as gloo. All must pass the same arguments; all get the same tagger.
        device: Where to compute, such as "cuda". Everything is drawn on the CPU, so the draws are the same everywhere.
        bf16: Multiply matrices in bfloat16, if the device can; weights, gradients and the sums of the CRF stay float32.

    Returns:
        A `TrainingRun`, its tagger as it was after the epoch with the best F1 on dev (of equals, the lower loss), on
        the CPU.

    Raises:
        DataFileError: A corpus is empty, a sentence has unequal numbers of tokens and tags, or a tag is not O, B-type
            or I-type.
        VectorFileError: No training word has a vector, which is a mismatch and not a small vocabulary.
        FrostlineError: The loss became NaN or infinite, or `device` or `bf16` cannot be used here.
        RunFolderError: `checkpoint` cannot be written, or cannot be resumed from.
        ValueError: `epochs`, `seed`, `patience` or `learn` is out of range, or `resume` comes without `checkpoint`.

    Cost: one copy of the table, and of what learns one copy for the best epoch; a step costs nothing of size V
        unless `learn` is "all". Of mapped vectors (those of `vectors.load`) little is in memory at a time.
    """
    config, callback, corpora = config or TaggerConfig(), callback or Callback(), [train, *auxiliary]
    _check_arguments(epochs, seed, patience, learn, resume is not False and checkpoint is None)
    if vectors is None and learn == "none":
        raise ValueError("learn: 'none' without vectors leaves random words. Pass vectors, or learn='missing'.")
    device = check_device(device)
    pretrained = vectors is not None
    vectors = Vectors([], np.empty((0, config.dimension))) if vectors is None else as_vectors(vectors)
    precision(device, bf16)  # raises now instead of at the first step
    _check_corpora({"train": train, "dev": dev} | {f"auxiliary[{i}]": corpus for i, corpus in enumerate(auxiliary)})
    coverage = cover((token for corpus in corpora for tokens, _ in corpus for token in tokens), vectors, lowercase=True)
    if pretrained:
        _check_coverage(coverage, len(vectors.words))
    # Gradients are needed even under the caller's no_grad; the caller's generator and threads are left as they were.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        vocabulary = Vocabulary(Words.of(coverage.missing) + vectors.words, missing=len(coverage.missing))
        initial_table = InitialTable.draw(vectors.matrix, vocabulary.missing, np.random.default_rng(seed))
        tag_sets = [tag_set(tags for _, tags in corpus) for corpus in corpora]
        model, unused = _network(initial_table.to_tensor(), tag_sets[0], config)
        heads = [model.head, *(Head(2 * config.hidden, tags, config.crf) for tags in tag_sets[1:])]
        for module in (model, *heads[1:]):
            module.to(device)

        plan = partial.train_only(model, _selections(learn, vocabulary, unused))
        parameters = [*plan.parameters(), *(weight for head in heads[1:] for weight in head.parameters())]
        tagger, group = Tagger(model, vocabulary, tag_sets[0]), DataParallelGroup(distributed)
        encoded = [
            Corpus(encode_corpus(corpus, vocabulary, tags, characters=config.char_filters > 0), head)
            for corpus, tags, head in zip(corpora, tag_sets, heads, strict=True)
        ]
        sampler = BatchSampler(encoded, vocabulary, config, epochs, seed)
        loop = TrainingLoop(tagger, sampler, Optimizer(parameters, config, sampler.steps), config, group, bf16)
        callback.start(plan, coverage)

        file = None
        if checkpoint is not None:
            arguments = {"epochs": epochs, "seed": seed, "learn": learn, "bf16": bf16, "device": device.type}
            arguments |= {"processes": group.size, **asdict(config)}
            arguments |= _digests(corpora, dev, vectors, initial_table)
            file = Checkpoint(checkpoint, arguments, checkpoint_every)
            if resume is not False:
                file.read(loop, None if resume is True else resume)
                _check_same_progress(loop, group, checkpoint)
                callback.resumed(loop.history, loop.tokens)

        def save(loop: TrainingLoop, now: bool) -> None:
            try:
                if file is not None and not group.rank:
                    file.write(loop, now)
            except RunFolderError as error:
                callback.not_saved(error)

        best, finished = loop.run(dev, callback, patience, save)
        model.to("cpu")
    audit = compare(initial_table.rows, model.embed, _rows_that_learn(learn, vocabulary))
    dev_score = loop.best_score or tagger.evaluate(dev)  # scored again only where the best epoch was before resuming
    return TrainingRun(tagger, plan, coverage, loop.history, best, finished, dev_score, audit, initial_table)


def _check_arguments(epochs: int, seed: int, patience: int | None, learn: str, nothing_to_resume: bool) -> None:
    if epochs < 1:
        raise ValueError(f"epochs: {epochs} is out of range. Pass 1 or more.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: {seed} is out of range. Pass 0 to 2**63 - 1.")
    if patience is not None and patience < 1:
        raise ValueError(f"patience: {patience} is out of range. Pass 1 or more, or None.")
    if nothing_to_resume:
        raise ValueError("resume: nothing to resume from. Pass checkpoint=, the file that the training wrote.")
    if learn not in get_args(Learn):
        raise ValueError(f"learn: expected one of {', '.join(map(repr, get_args(Learn)))}, got {learn!r}.")


def _check_corpora(corpora: Mapping[str, Sequence[Labelled]]) -> None:
    for name, sentences in corpora.items():
        if not any(tokens for tokens, _ in sentences):
            raise DataFileError(f"{name}: no sentence with a token in it.")
        for index, (tokens, tags) in enumerate(sentences):
            if len(tokens) != len(tags):
                raise DataFileError(f"{name}: sentence {index} has {len(tokens)} tokens and {len(tags)} tags.")
        if wrong := [repr(tag) for tag in {tag for _, tags in sentences for tag in tags} if not is_iob2_tag(tag)]:
            raise DataFileError(f"{name}: the tag {min(wrong)}. Pass O, B-type and I-type, as read_conll gives them.")


def _check_coverage(coverage: Coverage, words: int) -> None:
    if coverage.found_words == 0:
        raise VectorFileError(
            f"vectors: none of the {coverage.words:,} training words is among the {words:,} words of the vectors. "
            f"Check that they are of the same language and spelling."
        )


def _network(table: Tensor, tags: Sequence[str], config: TaggerConfig) -> tuple[LSTMTagger, list[str]]:
    """Return a new network, and the names of those of its parameters that must not learn."""
    model = LSTMTagger(
        table,
        tags,
        hidden=config.hidden,
        shape_width=config.shape_width,
        dropout=config.input_and_output_dropout,
        dropout_state=config.dropout_state,
        crf=config.crf,
        char_filters=config.char_filters,
    )
    return model, [] if config.forget_bias is None else model.use_single_bias(config.forget_bias)


def _selections(learn: Learn, vocabulary: Vocabulary, unused: Sequence[str]) -> dict[str, Any]:
    rows = {"missing": partial.rows(vocabulary.learned), "none": partial.nothing, "all": partial.everything}
    selections = {"*": partial.everything, "embed.weight": rows[learn]}
    return dict.fromkeys(unused, partial.nothing) | selections


def _digests(
    corpora: Sequence[Sequence[Labelled]], dev: Sequence[Labelled], vectors: Vectors, initial_table: InitialTable
) -> dict[str, str]:
    """Return short texts that change whenever the sentences or the vectors do."""
    blocks = (block.numpy().data for block in initial_table.blocks())
    pretrained = digest(chain([vectors.words.blob.data, vectors.words.offsets.data], blocks))
    return {"data": digest([*corpora, dev]), "vectors": pretrained}


def _check_same_progress(loop: TrainingLoop, group: DataParallelGroup, checkpoint: str | os.PathLike[str]) -> None:
    """Raise RunFolderError unless all processes have read the same checkpoint."""
    if not group.agree(sum(epoch.tokens for epoch in loop.history) + loop.tokens):
        raise RunFolderError(f"{checkpoint}: another training run writes to it. Stop that run, and try again.")


def _rows_that_learn(learn: Learn, vocabulary: Vocabulary) -> Tensor:
    learns = torch.zeros(len(vocabulary), dtype=torch.bool)
    if learn == "missing":
        learns[vocabulary.learned] = True
    elif learn == "all":
        learns[PADDING + 1 :] = True
    return learns
