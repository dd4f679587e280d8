"""`frostline tagger train`: parse, call, print."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.cli.tagger.options import add_columns, add_device, at_least, columns, device, speak_utf8
from frostline.cli.tagger.processes import processes

if TYPE_CHECKING:
    from frostline.tagger.data.conll import Sentences
    from frostline.vectors import Words

_EXAMPLES = """\
examples:
  frostline tagger train --train train.conll --dev dev.conll --vectors glove.6B.50d.txt.gz --out model
  frostline tagger train --train train.conll --dev dev.conll --vectors wiki.vec --out model --epochs 30 --seed 1
  frostline tagger train --train train.conll --also news/*.conll --dev dev.conll --vectors wiki.vec --out model
  torchrun --nproc-per-node 2 -m frostline tagger train --train train.conll --dev dev.conll --vectors wiki.vec --out m

A killed training goes on with the same arguments and --resume: every 30 seconds --out gets its state.
Under torchrun the processes share each batch; the same number of them goes on.
A .conll file holds one token a line, its tag (IOB1, IOB2, BIOES, BILOU) last, and an empty line after each sentence."""

_LONG = 2000  # tokens that no sentence has


def configure(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action and its arguments."""
    train = actions.add_parser("train", help="train, keep the best epoch, save", epilog=_EXAMPLES)
    train.description = "Train a tagger. Every pretrained vector stays fixed; training words without one learn theirs."
    train.add_argument("--train", metavar="F", required=True, help="sentences to learn from, CoNLL columns")
    train.add_argument("--dev", metavar="F", required=True, help="sentences that choose the best epoch, CoNLL columns")
    train.add_argument(
        "--also",
        metavar="F",
        nargs="+",
        action="append",
        default=[],
        help="more to learn from: the files of a corpus with a tag set of its own; repeat it for another corpus",
    )
    train.add_argument("--vectors", metavar="F", required=True, help="word vectors: .txt .vec .bin .gz .safetensors")
    train.add_argument(
        "--out", metavar="DIR", required=True, help="folder to write; a tagger already there is replaced"
    )
    train.add_argument("--epochs", metavar="N", type=at_least(1), default=16, help="passes over --train (default 16)")
    train.add_argument("--seed", metavar="N", type=at_least(0), default=0, help="same seed, same tagger (default 0)")
    train.add_argument(
        "--characters",
        metavar="N",
        type=at_least(0, 1024),
        default=0,
        help="read how a word is written as well, by N filters over its bytes (default 0: do not)",
    )
    train.add_argument("--patience", metavar="N", type=at_least(1), help="stop after N epochs without a better F1")
    train.add_argument("--resume", action="store_true", help="go on with the killed training of --out, bit for bit")
    add_device(train)
    train.add_argument("--bf16", action="store_true", help="multiply matrices in bfloat16; weights stay float32")
    add_columns(train)
    train.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    """Train, save, audit; return 1 where a frozen entry moved."""
    speak_utf8()
    with processes() as (rank, size):
        try:
            return _train(args, first=rank == 0, together=size > 1)
        except KeyboardInterrupt:
            from frostline.tagger import CHECKPOINT

            if (Path(args.out) / CHECKPOINT).exists():
                print("stopped  to go on, pass the same arguments and --resume")
            raise


def _train(args: argparse.Namespace, first: bool, together: bool) -> int:
    from frostline import tagger, vectors

    tagger.check_free(args.out)  # before the work, not after it
    if not args.resume and (Path(args.out) / tagger.CHECKPOINT).exists():
        print(f"warning  {args.out}: a training that has not ended is there; this replaces it, --resume goes on")
    where = device(args)
    layout = columns(args)
    train, dev = tagger.read_conll(args.train, layout), tagger.read_conll(args.dev, layout)
    print(f"train    {_size(train)} in {args.train}")
    print(f"dev      {_size(dev)} in {args.dev}", flush=True)
    _warn(train, dev)
    also = [[tagger.read_conll(path, layout) for path in paths] for paths in args.also]
    beside = [(" ".join(paths), _size(*parts)) for paths, parts in zip(args.also, also, strict=True)]
    for paths, size in beside:
        print(f"also     {size} in {paths}", flush=True)
    table = vectors.load(args.vectors)
    print(f"vectors  {len(table):,} words x {table.dimension} numbers in {args.vectors}", flush=True)
    _report_lookups({"train": train, "dev": dev}, table.words)
    others = [[sentence for part in parts for sentence in part] for parts in also]
    tokens, *more = [sum(len(sentence.tokens) for sentence in corpus) for corpus in (train, *others)]
    with tagger.Progress(args.epochs, tokens, sum(more)) as progress:
        result = tagger.train(
            train,
            dev,
            table,
            also=others,
            epochs=args.epochs,
            seed=args.seed,
            patience=args.patience,
            options=tagger.Options(characters=args.characters),
            watch=progress,
            checkpoint=Path(args.out) / tagger.CHECKPOINT,
            resume=args.resume,
            together=together,
            device=where,
            bf16=args.bf16,
        )
    best = f"epoch {result.best.number} of {args.epochs}, F1 on dev {100 * result.best.dev_f1:.1f} %"
    facts = {
        "train": f"{_size(train)} in {args.train}",
        "dev": f"{_size(dev)} in {args.dev}",
        **{f"also {paths}": size for paths, size in beside},
        "vectors": f"{len(table):,} words x {table.dimension} numbers in {args.vectors}",
        "coverage": str(result.coverage),
        "seed": str(args.seed),
        "kept": best,
    }
    if first:
        result.tagger.save(args.out)
        tagger.leave(args.out, result, title=f"A tagger trained on {Path(args.train).name}", facts=facts)
    print(f"audit    {result.audit}")
    print(result.tagger.evaluate(dev))
    print(f"F1 on dev {100 * result.best.dev_f1:.1f} %: epoch {result.best.number}, saved in {args.out}")
    return 1 if result.audit.frozen_moved else 0


def _size(*parts: Sentences) -> str:
    tokens = sum(len(sentence.tokens) for part in parts for sentence in part)
    schemes = sorted({part.scheme for part in parts} - {"IOB2"})
    return f"{sum(map(len, parts)):,} sentences, {tokens:,} tokens" + "".join(f", tags in {name}" for name in schemes)


def _warn(train: Sentences, dev: Sentences) -> None:
    """Say what looks like a mistake, or makes F1 on dev mean less than it seems."""
    from frostline.tagger import unknown_types

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


def _report_lookups(texts: dict[str, Sentences], words: Words) -> None:
    from frostline.tagger import look_up
    from frostline.tagger.data.vocabulary import SUSPICIOUS

    for name, sentences in texts.items():
        found = look_up((token for sentence in sentences for token in sentence.tokens), words)
        print(f"{name:<8} {found}")
        if found.share < SUSPICIOUS:
            print(
                f"warning  {name}: few tokens have a vector. Compare how both write words: language, case, encoding, "
                f"punctuation split off or not.",
            )
