"""How fast is the tagger compared with flair's, and how much memory does it take?

Compares, on the same sentences and the same vectors, each in a process of its own, one thread:
    frostline             `tagger.train` and `Tagger.predict` with their defaults (hidden 200, batches of 16)
    frostline, 256        the same with flair's sizes: hidden 256, batches of 32
    flair                 `SequenceTagger(hidden_size=256)` over `WordEmbeddings`, batches of 32, SGD at 0.1
Times are processor time, so that other work on the machine counts little. Training is timed by its steps alone, without
loading and without evaluation. Both predict lists of tokens, 32 sentences at a time or single ones; *prepared* is flair
with its `Sentence` objects made before the clock starts. Memory is the peak of the whole process, in MB, from vectors
that each library has already converted to its own format (frostline's cache, gensim's KeyedVectors).

Run:    python benchmarks/tagger_speed.py TRAIN DEV VECTORS --flair PYTHON [--epochs N]
PYTHON is the interpreter of an environment that has flair and gensim; without it flair is left out. With --quick the
sentences and vectors are made up and small.                                                       (needs Linux)
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIZES = {"frostline": (200, 16), "frostline, 256": (256, 32), "flair": (256, 32)}  # hidden, batch size
CONVERT = (
    "import sys; from gensim.models import KeyedVectors as K; "
    "K.load_word2vec_format(sys.argv[1], no_header=True).save(sys.argv[2])"
)


def peak_mb() -> float:
    """Return the peak memory of this process, in MB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def rate(predict: Callable[[Any], object], make: Callable[[], Sequence[Any]], tokens: int, rounds: int) -> float:
    """Return tokens per second, median, of `predict` on all inputs that `make` returns; the first warms up."""
    seconds = []
    for _ in range(rounds + 1):
        inputs = make()
        began = time.process_time()
        for batch in inputs:
            predict(batch)
        seconds.append(time.process_time() - began)
    return tokens / statistics.median(seconds[1:])


def frostline(folder: Path, hidden: int, batch_size: int, epochs: int, rounds: int) -> dict[str, float]:
    """Train and predict with this library."""
    from frostline import tagger, vectors

    class Clock(tagger.Callback):
        """Sums the steps, except the first of each epoch, before which more is done than a step."""

        seconds, tokens, last = 0.0, 0, 0.0

        def batch(self, tokens: int) -> None:
            now = time.process_time()
            if self.last:
                self.seconds, self.tokens = self.seconds + now - self.last, self.tokens + tokens
            self.last = now

        def epoch(self, epoch: tagger.Epoch) -> None:
            self.last = 0.0

    train, dev = (tagger.read_conll(folder / f"{name}.conll") for name in ("train", "dev"))
    config = tagger.TaggerConfig(hidden=hidden, batch_size=batch_size)
    clock = Clock()
    run = tagger.train(train, dev, vectors.load(folder / "vectors.txt"), epochs=epochs, config=config, callback=clock)
    plain = [sentence.tokens for sentence in dev]
    tokens = sum(map(len, plain))
    groups = [plain[start : start + 32] for start in range(0, len(plain), 32)]
    return {
        "train": clock.tokens / clock.seconds,
        "by 32": rate(run.tagger.predict, lambda: groups, tokens, rounds),
        "one by one": rate(run.tagger.predict, lambda: [[sentence] for sentence in plain], tokens, rounds),
        "MB": peak_mb(),
    }


def flair(folder: Path, hidden: int, batch_size: int, epochs: int, rounds: int) -> dict[str, float]:
    """Train and predict with flair."""
    import torch
    from flair.data import Sentence
    from flair.datasets import ColumnCorpus
    from flair.embeddings import WordEmbeddings
    from flair.models import SequenceTagger
    from flair.trainers import ModelTrainer
    from flair.trainers.plugins import TrainerPlugin

    torch.set_num_threads(1)
    columns = {0: "text", 1: "ner"}
    corpus: Any = ColumnCorpus(
        folder, columns, train_file="train.conll", dev_file="dev.conll", sample_missing_splits=False
    )
    model = SequenceTagger(
        embeddings=WordEmbeddings(str(folder / "vectors.kv")),
        tag_dictionary=corpus.make_label_dictionary("ner", add_unk=False),
        tag_type="ner",
        hidden_size=hidden,
    )
    seconds: list[float] = []

    class Clock(TrainerPlugin):  # type: ignore[misc, unused-ignore]
        @TrainerPlugin.hook  # type: ignore[misc, untyped-decorator, unused-ignore]
        def before_training_epoch(self, **_: Any) -> None:
            seconds.append(-time.process_time())

        @TrainerPlugin.hook  # type: ignore[misc, untyped-decorator, unused-ignore]
        def after_training_epoch(self, **_: Any) -> None:
            seconds[-1] += time.process_time()

    trainer = ModelTrainer(model, corpus)
    out = folder / "flair"
    trainer.train(out, max_epochs=epochs, mini_batch_size=batch_size, save_final_model=False, plugins=[Clock()])
    model.eval()
    plain = [[token.text for token in sentence] for sentence in corpus.dev]
    tokens, trained = sum(map(len, plain)), sum(map(len, corpus.train))
    groups = [plain[start : start + 32] for start in range(0, len(plain), 32)]
    singles = [[sentence] for sentence in plain]

    def prepare(group: list[list[str]]) -> list[Any]:
        return [Sentence(tokens) for tokens in group]

    def predict(sentences: list[Any]) -> None:
        model.predict(sentences, mini_batch_size=32)

    return {
        "train": statistics.median(trained / took for took in seconds),
        "by 32": rate(lambda group: predict(prepare(group)), lambda: groups, tokens, rounds),
        "one by one": rate(lambda group: predict(prepare(group)), lambda: singles, tokens, rounds),
        "by 32, prepared": rate(predict, lambda: [prepare(group) for group in groups], tokens, rounds),
        "one by one, prepared": rate(predict, lambda: [prepare(group) for group in singles], tokens, rounds),
        "MB": peak_mb(),
    }


def made_up(folder: Path) -> tuple[Path, Path, Path]:
    """Write sentences in which every word with a Z is an entity, and vectors for all of them."""
    draw = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdkz" for b in "aeiou" for c in "lmnrst"]
    paths = folder / "made-train.conll", folder / "made-dev.conll", folder / "made.txt"
    for path, count in zip(paths, (60, 40), strict=False):
        lines = [draw.choices(words, k=draw.randint(1, 12)) for _ in range(count)]
        path.write_text("\n".join("".join(f"{w}\t{'B-z' if 'z' in w else 'O'}\n" for w in line) for line in lines))
    paths[2].write_text("".join(f"{w} {' '.join(f'{draw.gauss(0, 1):.4f}' for _ in range(8))}\n" for w in words))
    return paths


def copy_in(train: Path, dev: Path, vectors: Path, folder: Path) -> None:
    """Write what both libraries read to `folder`: plain columns, and the vectors decompressed."""
    from frostline import tagger
    from frostline.vectors import load

    for name, path in {"train": train, "dev": dev}.items():
        sentences = [sentence for sentence in tagger.read_conll(path) if sentence.tokens]
        text = "\n".join(
            "".join(f"{token}\t{tag}\n" for token, tag in zip(*sentence, strict=True)) for sentence in sentences
        )
        (folder / f"{name}.conll").write_text(text, encoding="utf-8")
    opener: Any = gzip.open if vectors.suffix == ".gz" else open
    with opener(vectors, "rb") as packed, (folder / "vectors.txt").open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    load(folder / "vectors.txt")  # so that it is in the cache


def main() -> None:
    """Measure each way; print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="TRAIN DEV VECTORS")
    parser.add_argument("--flair", metavar="PYTHON", help="interpreter of an environment that has flair")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="predictions of the whole of DEV")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--alone", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    epochs, rounds = (1, 1) if arguments.quick else (arguments.epochs, arguments.rounds)
    if arguments.alone:
        way, data = arguments.alone
        measure = flair if way == "flair" else frostline
        print(json.dumps(measure(Path(data), *SIZES[way], epochs, rounds)))
        return
    if len(arguments.files) != (0 if arguments.quick else 3):
        parser.error("three files are needed: TRAIN, DEV and VECTORS; or none with --quick")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"FROSTLINE_CACHE": f"{name}/cache", "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
        train, dev, vectors = made_up(folder) if arguments.quick else arguments.files
        copy_in(train, dev, vectors, folder)
        ways = [way for way in SIZES if way != "flair" or arguments.flair]
        if arguments.flair:
            subprocess.run([arguments.flair, "-c", CONVERT, folder / "vectors.txt", folder / "vectors.kv"], check=True)
        columns = ("train", "by 32", "one by one", "by 32, prepared", "one by one, prepared", "MB")
        print(f"| way | {' | '.join(columns)} |\n| --- |{' --: |' * len(columns)}")
        for way in ways:
            command = [arguments.flair if way == "flair" else sys.executable, __file__, "--alone", way, name]
            command += ["--epochs", str(epochs), "--rounds", str(rounds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {way} | " + " | ".join(f"{found[key]:,.0f}" if key in found else "" for key in columns) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
