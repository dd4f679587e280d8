"""`frostline word2vec train`: word vectors from a text, of which chosen words learn."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

HELP = "train word vectors (word2vec), in which known words may stand still"

_EXAMPLES = """\
examples:
  frostline word2vec train text.txt --out vectors.bin --epochs 5 --neighbours-of king,sea
  frostline word2vec train text.txt.gz --out more.txt --start-from glove.6B.50d.txt.gz --dim 50
  zcat *.gz | frostline word2vec train - --out vectors.safetensors
  frostline word2vec train new.txt --out grown.bin --start-from vectors.bin.run --learn missing

The same text, settings and seed give the same vectors, bit for bit, on any number of threads. --out is word2vec text
(.txt, .vec), word2vec binary (.bin) or .safetensors. The run folder, by default OUT.run, holds what `frostline report`
shows, and model.safetensors, from which training can go on. While the run lasts, the encoded text lies there too (4
bytes a word) and the checkpoint: after an interruption pass the same arguments and --resume."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the action and its arguments."""
    parser.epilog = (
        "examples:\n  frostline word2vec train text.txt --out vectors.bin\n  frostline word2vec train --help"
    )
    actions = parser.add_subparsers(metavar="action", required=True)
    train = actions.add_parser("train", help="train, write the vectors", epilog=_EXAMPLES)
    train.description = "Train word vectors on a text: one paragraph or sentence a line, words separated by spaces."
    train.add_argument("text", metavar="FILE", help="UTF-8 text, plain or .gz; - for standard input")
    train.add_argument(
        "--out", metavar="VECTORS", required=True, help="file to write: .txt .vec .bin (.gz) .safetensors"
    )
    train.add_argument("--start-from", metavar="F", help="known words: a file of vectors, a model or its run folder")
    train.add_argument(
        "--learn",
        choices=("missing", "all", "none"),
        default="missing",
        help="with --start-from: words that it lacks (default), all words, or no input row",
    )
    train.add_argument("--only-text", action="store_true", help="leave out words of --start-from that the text lacks")
    model = train.add_mutually_exclusive_group()
    model.add_argument("--cbow", action="store_true", help="the mean of a context predicts a word (default)")
    model.add_argument("--skip-gram", action="store_true", help="each word of a context predicts it alone")
    loss = train.add_mutually_exclusive_group()
    loss.add_argument("--negatives", metavar="N", type=int, default=5, help="words drawn for each target (default 5)")
    loss.add_argument("--softmax", action="store_true", help="the full softmax, for some thousand words")
    train.add_argument("--dim", metavar="N", type=int, default=100, help="dimension of a vector (default 100)")
    train.add_argument("--window", metavar="N", type=int, default=5, help="words on each side at most (default 5)")
    train.add_argument("--epochs", metavar="N", type=int, default=5, help="passes over the text (default 5)")
    train.add_argument("--alpha", metavar="X", type=float, help="learning rate (default 0.05, skip-gram 0.025)")
    train.add_argument("--min-count", metavar="N", type=int, default=5, help="leave out rarer words (default 5)")
    train.add_argument("--sample", metavar="X", type=float, default=1e-3, help="subsampling (default 1e-3; 0: none)")
    train.add_argument("--seed", metavar="N", type=int, default=0, help="same seed, same vectors (default 0)")
    train.add_argument("--threads", metavar="N", type=int, help="threads (default: one for each core)")
    train.add_argument("--neighbours-of", metavar="W,W", help="print the neighbours of these words after each epoch")
    train.add_argument("--run", dest="run_folder", metavar="DIR", help="the run folder (default VECTORS.run)")
    train.add_argument("--resume", action="store_true", help="continue an interrupted run, bit for bit")
    train.set_defaults(action=_train)


def run(args: argparse.Namespace) -> int:
    """Run the action; return 0, or 1 where a frozen value moved."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    code: int = args.action(args)
    return code


def _train(args: argparse.Namespace) -> int:
    from frostline.errors import FrostlineError
    from frostline.word2vec.audit import audit
    from frostline.word2vec.progress import Progress
    from frostline.word2vec.settings import Settings
    from frostline.word2vec.text_to_vectors import train

    names = ("dim", "window", "negatives", "epochs", "alpha", "min_count", "sample", "seed", "skip_gram", "softmax")
    try:
        settings = Settings(**{name: getattr(args, name) for name in names})
    except ValueError as error:
        raise FrostlineError(_as_option(error)) from None
    words = [word for word in (args.neighbours_of or "").split(",") if word]
    progress = Progress(words)
    run_folder = Path(args.run_folder or f"{args.out}.run")
    try:
        training = train(
            args.text,
            settings,
            start=args.start_from,
            learn=args.learn,
            only_text=args.only_text,
            out=args.out,
            run_folder=run_folder,
            resume=args.resume,
            threads=args.threads,
            callback=progress,
        )
    except KeyboardInterrupt:
        if progress.started:
            print(f"stopped: the vectors so far are in {args.out}; to continue, pass the same arguments and --resume")
        raise
    except ValueError as error:
        if isinstance(error, FrostlineError):
            raise
        raise FrostlineError(_as_option(error)) from None
    found = audit(training)
    print(f"audit: {found}")
    print(f"{len(training.words):,} words, dimension {settings.dim}, in {args.out}; {run_folder} for frostline report")
    return 1 if found.frozen_moved else 0


def _as_option(error: ValueError) -> str:
    """Return the message of an error that begins with the name of an argument, as that of an option."""
    name, _, rest = str(error).partition(":")
    return f"--{name.replace('_', '-')}:{rest}"
