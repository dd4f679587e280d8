"""`frostline tagger train`: train a tagger, audit it, save it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frostline.cli.tagger.options import add_columns, add_device, at_least, columns, device, use_utf8_stdout
from frostline.cli.tagger.settings import add_config, config
from frostline.cli.tagger.stopping import exit_on_sigterm, stop_on_signals
from frostline.errors import FrostlineError, ModelFolderError, RunFolderError

if TYPE_CHECKING:
    from frostline.tagger import TrainingRun
    from frostline.tagger.data.conll import Sentences
    from frostline.vectors import Vectors

_EXAMPLES = """\
examples:
  frostline tagger train --train train.conll --dev dev.conll --vectors glove.6B.50d.txt.gz --out model
  frostline tagger train --train train.conll --dev dev.conll --vectors wiki.vec --out model --epochs 30 --seed 1
  frostline tagger train --train train.conll --auxiliary news/*.conll --dev dev.conll --vectors wiki.vec --out m
  frostline tagger train --train train.conll --dev dev.conll --no-vectors --original --out model
  torchrun --nproc-per-node 2 -m frostline tagger train --train train.conll --dev dev.conll --vectors wiki.vec --out m

The state of training is written to --out after the first epoch and every 30 seconds. Ctrl-C and SIGTERM save the best
epoch so far as well, which can be used. After any interruption, pass the same arguments and --resume. Under torchrun
the processes share each batch, Ctrl-C only stops them, and to resume there have to be as many as before.
A .conll file holds one token a line, its tag (IOB1, IOB2, BIOES, BILOU) last, and an empty line after each sentence."""

_LONG = 2000  # tokens: a longer sentence is probably a mistake
_LOW_COVERAGE = 0.6  # share of tokens with a vector below which something is wrong; tweets over GloVe reach 0.9


def configure(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action and its arguments."""
    train = actions.add_parser("train", help="train, keep the best epoch, save", epilog=_EXAMPLES)
    train.description = "Train a tagger. Every pretrained vector stays fixed; training words without one learn theirs."
    train.add_argument("--train", metavar="F", required=True, help="sentences to learn from, CoNLL columns")
    train.add_argument("--dev", metavar="F", required=True, help="sentences that choose the best epoch, CoNLL columns")
    train.add_argument(
        "--auxiliary",
        metavar="F",
        nargs="+",
        action="append",
        default=[],
        help="more to learn from: the files of a corpus with a tag set of its own; repeat it for another corpus",
    )
    table = train.add_mutually_exclusive_group(required=True)
    table.add_argument("--vectors", metavar="F", help="word vectors: .txt .vec .bin .gz .safetensors")
    table.add_argument("--no-vectors", action="store_true", help="every word of --train starts at random, and learns")
    train.add_argument(
        "--learn",
        choices=("missing", "none", "all"),
        help="rows of the table that learn: of words that the vectors lack, none, or all (default missing; with "
        "--no-vectors or --original all)",
    )
    train.add_argument(
        "--out", metavar="DIR", required=True, help="folder to write; a tagger already there is replaced"
    )
    train.add_argument("--epochs", metavar="N", type=at_least(1), default=16, help="passes over --train (default 16)")
    train.add_argument("--seed", metavar="N", type=at_least(0), default=0, help="same seed, same tagger (default 0)")
    train.add_argument("--patience", metavar="N", type=at_least(1), help="stop after N epochs without a better F1")
    train.add_argument(
        "--resume",
        metavar="DIR",
        nargs="?",
        const=True,
        default=False,
        help="continue the interrupted training run in --out, or in DIR, bit for bit",
    )
    train.add_argument(
        "--checkpoint-every", metavar="S", type=at_least(0), default=30, help="seconds (default 30; 0: each step)"
    )
    add_device(train)
    train.add_argument("--bf16", action="store_true", help="multiply matrices in bfloat16; weights stay float32")
    add_config(train)
    add_columns(train)
    train.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    """Train, save, audit; return 1 where a frozen entry moved, 130 or 143 where a signal ended training."""
    use_utf8_stdout()
    with exit_on_sigterm(), torchrun_processes() as (rank, size):
        try:
            return _train(args, first=rank == 0, distributed=size > 1)
        except (KeyboardInterrupt, SystemExit):
            from frostline.tagger.saved import CHECKPOINT

            if (Path(args.out) / CHECKPOINT).exists():
                print("stopped  to continue, pass the same arguments and --resume")
            raise


def _train(args: argparse.Namespace, first: bool, distributed: bool) -> int:
    from frostline import tagger
    from frostline.tagger.saved import CHECKPOINT, check_free, check_space
    from frostline.tagger.training.callbacks import Progress

    settings, learn = config(args), _learn(args)
    check_free(args.out)  # before the work, not after it
    checkpoint = Path(args.out) / CHECKPOINT
    if not args.resume and checkpoint.exists():
        print(f"warning  {args.out}: an unfinished training run is replaced; --resume would continue it")
    computed_on, file_columns = device(args), columns(args)
    train, dev = tagger.read_conll(args.train, file_columns), tagger.read_conll(args.dev, file_columns)
    facts = {"train": f"{_size(train)} in {args.train}", "dev": f"{_size(dev)} in {args.dev}"}
    print(f"train    {facts['train']}")
    print(f"dev      {facts['dev']}", flush=True)
    _warn(train, dev)
    auxiliary = []
    for paths in args.auxiliary:
        files = [tagger.read_conll(path, file_columns) for path in paths]
        auxiliary.append([sentence for file in files for sentence in file])
        facts[f"auxiliary {' '.join(paths)}"] = _size(*files)
        print(f"auxiliary {_size(*files)} in {' '.join(paths)}", flush=True)
    table = None if args.no_vectors else _load(args.vectors)
    if table is not None:
        facts["vectors"] = f"{len(table):,} words x {table.dimension} numbers in {args.vectors}"
        print(f"vectors  {facts['vectors']}", flush=True)
        _print_coverage({"train": train, "dev": dev}, table)
    tokens, *more = [sum(len(sentence.tokens) for sentence in corpus) for corpus in (train, *auxiliary)]
    words = 0 if table is None else table.words.blob.nbytes + 4 * len(table)
    progress = Progress(args.epochs, tokens, sum(more), partial(check_space, args.out, word_bytes=words))
    with progress, stop_on_signals(None if distributed else progress) as codes:
        result = tagger.train(
            train,
            dev,
            table,
            auxiliary=auxiliary,
            learn=learn,
            epochs=args.epochs,
            seed=args.seed,
            patience=args.patience,
            config=settings,
            callback=progress,
            checkpoint=checkpoint,
            checkpoint_every=args.checkpoint_every,
            resume=args.resume if args.resume in (True, False) else Path(args.resume) / CHECKPOINT,
            distributed=distributed,
            device=computed_on,
            bf16=args.bf16,
        )
        best = f"epoch {result.best.number} of {args.epochs}, F1 on dev {100 * result.best.dev_f1:.1f} %"
        facts |= {"coverage": str(result.coverage), "seed": str(args.seed), "kept": best}
        if first:
            _save(result, args, facts, dev)
        print(f"audit    {result.audit}")
        print(result.dev_score)
        if not result.finished:
            print(f"stopped  {best}, saved in {args.out}; to continue, pass the same arguments and --resume")
            return codes[0]
        print(f"F1 on dev {100 * result.best.dev_f1:.1f} %: epoch {result.best.number}, saved in {args.out}")
    return codes[0] if codes else int(result.audit.frozen_moved > 0)


def _learn(args: argparse.Namespace) -> Literal["missing", "none", "all"]:
    if args.no_vectors and args.learn not in (None, "all"):
        raise FrostlineError(f"--learn: {args.learn!r} with --no-vectors, where every word learns. Leave it out.")
    learn: Literal["missing", "none", "all"] = args.learn or ("all" if args.no_vectors or args.original else "missing")
    return learn


def _load(name: str) -> Vectors:
    from frostline import vectors
    from frostline.vectors.packed import split_member

    path, member = split_member(name)
    return vectors.load(path, member=member)


def _save(result: TrainingRun, args: argparse.Namespace, facts: dict[str, str], dev: Sentences) -> None:
    from frostline.tagger import saved
    from frostline.tagger.training.run_folder import write_run_folder

    parts, unfinished = result.tagger, not result.finished
    try:
        saved.save(args.out, parts.model, parts.vocabulary, parts.tags, keep_checkpoint=unfinished)
    except ModelFolderError as error:
        if not (Path(args.out) / saved.CHECKPOINT).exists():
            raise
        raise ModelFolderError(
            f"{error} The training is kept: make room and pass --resume, or pass --out ELSEWHERE --resume {args.out}, "
            f"and else the same arguments."
        ) from None
    title = f"A tagger trained on {Path(args.train).name}" + (", so far" if unfinished else "")
    try:
        write_run_folder(args.out, result, title=title, facts=facts, dev=dev)
    except RunFolderError as error:  # the tagger is there, and can be used
        print(f"warning  the tagger is saved, but not what a report needs: {error}")


def _size(*parts: Sentences) -> str:
    tokens = sum(len(sentence.tokens) for part in parts for sentence in part)
    schemes = sorted({part.scheme for part in parts} - {"IOB2"})
    return f"{sum(map(len, parts)):,} sentences, {tokens:,} tokens" + "".join(f", tags in {name}" for name in schemes)


def _warn(train: Sentences, dev: Sentences) -> None:
    """Print a warning for what looks like a mistake, or makes F1 on dev less meaningful than it seems."""
    from frostline.tagger.scoring.error_analysis import unknown_types

    for kind, times in unknown_types((tag for _, tags in train for tag in tags), (tags for _, tags in dev)).items():
        print(f"warning  dev: {times:,} of type {kind!r}, which --train lacks; they count, and cannot be found")
    for name, sentences in {"train": train, "dev": dev}.items():
        if all(tag == "O" for _, tags in sentences for tag in tags):
            print(f"warning  {name}: every tag is O. Compare which column holds the tag.")
        longest = max(len(sentence.tokens) for sentence in sentences)
        if longest > _LONG:
            print(f"warning  {name}: a sentence of {longest:,} tokens. An empty line ends a sentence.")
    if dev == train:
        print("warning  dev: the sentences of --train, so F1 says nothing of other text, and the last epochs look best")


def _print_coverage(texts: dict[str, Sentences], vectors: Vectors) -> None:
    from frostline.vectors import cover

    for name, sentences in texts.items():
        tokens = (token for sentence in sentences for token in sentence.tokens)
        coverage = cover(tokens, vectors, lowercase=True)
        print(f"{name:<8} {coverage}")
        if coverage.share < _LOW_COVERAGE:
            print(
                f"warning  {name}: few tokens have a vector. Compare how both write words: language, case, encoding, "
                f"punctuation split off or not.",
            )


@contextmanager
def torchrun_processes() -> Iterator[tuple[int, int]]:
    """Join the process group of torchrun and silence stdout in all processes but rank 0; yield rank and world size."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield 0, 1
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    try:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere if rank else sys.stdout):
            yield rank, world_size
    finally:
        dist.destroy_process_group()
