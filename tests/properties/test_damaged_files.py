"""Damaged files through every reader: each is read right, or refused in one line that names the file; never a crash.

A file that is accepted must hold what a slow reader finds in its bytes, or, where a checksum protects it, what was
written. `make soak` runs 100,000 of them.
"""

from __future__ import annotations

import gzip
import io
import random
import re
import resource
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline import tagger, vectors
from frostline.record.record_file import read_record
from frostline.record.run_folder import RowChanges, describe_run, read_run
from frostline.tagger import saved as tagger_folder

from . import counts
from .cases import CASES, SEED, SOAK

WORDS = ["the", "ice", "new york", "été", "日本", "1990", *(f"w{row}" for row in range(20))]
MATRIX = np.random.default_rng(0).normal(size=(len(WORDS), 3)).astype(np.float32)
LINES = "".join(f"{w} {a:.5f} {b:.5f} {c:.5f}\n" for w, (a, b, c) in zip(WORDS, MATRIX, strict=True)).encode()
BINARY = b"26 3\n" + b"".join(
    w.replace(" ", "_").encode() + b" " + row.tobytes() + b"\n" for w, row in zip(WORDS, MATRIX, strict=True)
)
CONLL = "".join(f"w{k}\t{'B-place' if k % 3 == 0 else 'O'}\n" + "\n" * (k % 4 == 3) for k in range(24)).encode()
SCORES = "".join(f"w{k} O {'B-x' if k % 5 == 0 else 'O'} {'B-x' if k % 7 == 0 else 'O'}\n" for k in range(24)).encode()
MEGABYTES = 600  # that all readers together may add to what the process needs


def slow_text(data: bytes) -> tuple[list[bytes], list[list[float]]] | None:
    """The words and numbers of a text file, line by line; None if the width is in doubt."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = [re.findall(rb"[^ \t]+", line.removesuffix(b"\r")) for line in data.split(b"\n")]
    lines = [line for line in lines if line]
    if lines and len(lines[0]) == 2 and all(field.isdigit() for field in lines[0]):
        lines = lines[1:]
    rows: dict[bytes, list[float]] = {}
    for line in lines:
        if len(line) < 4:
            return None
        rows.setdefault(b" ".join(line[:-3]), [float(field) for field in line[-3:]])
    return list(rows), list(rows.values())


def slow_binary(data: bytes) -> tuple[list[bytes], list[list[float]]] | None:
    header, _, rest = data.partition(b"\n")
    count, width = map(int, header.split())
    rows: dict[bytes, list[float]] = {}
    for _ in range(count):
        word, _, rest = rest.partition(b" ")
        rows.setdefault(word.lstrip(b"\n"), list(struct.unpack(f"<{width}f", rest[: 4 * width])))
        rest = rest[4 * width :]
    return list(rows), list(rows.values())


def read_vectors(path: Path, slow: Callable[[bytes], Any] | None) -> None:
    found = vectors.load(path, cache=False)
    words, matrix = list(found.words), np.array(found.matrix)
    assert matrix.shape == (len(words), found.dimension)
    assert (found.rows_of(words) < len(words)).all()
    if slow is None:
        return
    assert np.isfinite(matrix).all()
    if found.dimension == 3 and (expected := slow(path.read_bytes())) is not None:
        with np.errstate(over="ignore"):
            same = np.array(expected[1]).astype(np.float32)
        with_single_blanks = [re.sub(rb"[ \t]+", b" ", word) for word in expected[0]]
        assert [re.sub(rb"[ \t]+", b" ", word.encode()) for word in words] == with_single_blanks
        assert np.array_equal(matrix.view(np.uint32), same.view(np.uint32))


def as_written(data: bytes) -> Any:
    return slow_text(LINES)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("v.txt", LINES)
    return file.getvalue()


def written(tmp_path: Path, name: str, write: Callable[[Path], object]) -> bytes:
    write(tmp_path / name)
    return (tmp_path / name).read_bytes()


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))


PLAN = {"0.weight": fl.rows([4, 7]), "2.weight": fl.entries(torch.eye(2) > 0), "2.bias": fl.everything}


def learned() -> nn.Module:
    model = base()
    for parameter in fl.train_only(model, PLAN).parameters():
        parameter.data.add_(1)
    return model


def read_learned(path: Path) -> None:
    model = base()
    fl.load_learned(model, path)
    expected = learned().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def run_folder(folder: Path) -> None:
    words, table = ["a", "b"], torch.zeros(2, 2)
    changes = RowChanges.from_tables(words, table, table + 1, torch.tensor([1]), frozen=[0])
    plan, curves = fl.train_only(base(), PLAN), [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25}]
    audit = {"frozen_compared": 2, "frozen_moved": 0, "learned_rows": 1, "learned_rows_moved": 1}
    describe_run(folder, title="A run", plan=plan, audit=audit, curves=curves, row_changes=changes)
    with fl.Recorder(folder) as recorder:
        for step in range(5):
            recorder(loss=1 / (1 + step))


SENTENCES = [tagger.Sentence(("Oslo", "is", "cold"), ("B-place", "O", "O")), tagger.Sentence(("ice",), ("O",))]
SMALL = tagger.TaggerConfig(hidden=4, shape_width=2)


def train(checkpoint: Path | None, resume: bool = False) -> Any:
    table = vectors.Vectors(["is", "cold", "ice"], MATRIX[:3])
    options = {"checkpoint": checkpoint, "checkpoint_every": 0, "resume": resume}
    return tagger.train(SENTENCES, SENTENCES, table, epochs=1, config=SMALL, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bytes, Callable[[Path], object]]]:
    """The whole files: name of a reader -> the file's name, its bytes, and how it is read."""
    folder = tmp_path_factory.mktemp("whole")
    run_folder(folder / "run")
    train(folder / "checkpoint").tagger.save(folder / "tagger")
    model, checkpoint = folder / "tagger", folder / "checkpoint"
    record = (folder / "run" / "record.safetensors").read_bytes()
    of_vectors = written(folder, "v.safetensors", lambda path: vectors.save(vectors.Vectors(WORDS, MATRIX), path))
    found: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
        "text": ("v.txt", LINES, lambda path: read_vectors(path, slow_text)),
        "text with a header": ("v.vec", b"26 3\n" + LINES, lambda path: read_vectors(path, slow_text)),
        "gzip": ("v.txt.gz", gzip.compress(LINES), lambda path: read_vectors(path, as_written)),
        "zip": ("v.zip", zipped(), lambda path: read_vectors(path, as_written)),
        "binary": ("v.bin", BINARY, lambda path: read_vectors(path, slow_binary)),
        "vectors, mapped": ("v.safetensors", of_vectors, lambda path: read_vectors(path, None)),
        "CoNLL": ("d.conll", CONLL, tagger.read_conll),
        "scores": ("out.txt", SCORES, tagger.score_file),
        "learned": ("l.safetensors", written(folder, "l", lambda at: fl.save_learned(learned(), at)), read_learned),
        "record": ("record.safetensors", record, lambda path: read_record(path.parent)),
        "checkpoint": ("checkpoint", checkpoint.read_bytes(), lambda path: train(path, resume=True)),
    }  # fmt: skip
    for name in ("about.json", "plan.json", "audit.json", "curves.jsonl", "row_changes.safetensors"):
        found[name] = (name, (folder / "run" / name).read_bytes(), lambda path: read_run(path.parent))
    for name in (tagger_folder.CONFIG, tagger_folder.WORDS, tagger_folder.TENSORS):
        found[f"tagger's {name}"] = (name, (model / name).read_bytes(), lambda path: tagger_folder.load(path.parent))
    return found


PIECES = [b"nan", b"1e999", b"-1", b" ", b"\t", b"\n", b"\r", b"\0" * 8, b"\xff" * 8, b"{", b"9" * 400]


def damaged(whole: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """Change some of the bytes: bits, pieces, numbers, ends."""
    data = bytearray(whole)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        at = draw.randrange(len(data) + 1)
        to = min(len(data), at + draw.choice([1, 2, 8, 40, 1000]))
        kind = draw.randrange(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at:to]
        elif kind == 3:
            data[at:at] = data[at:to] * draw.choice([1, 2, 50])
        elif kind == 4:
            data[at:at] = draw.randbytes(draw.choice([1, 4, 30]))
        elif kind == 5:
            data[at:to] = draw.choice(PIECES)
        elif kind == 6:
            other = draw.choice(others)
            data[at:to] = other[draw.randrange(len(other)) :][:200]
        elif kind == 7:
            numbers = [*re.finditer(rb"\d+", data[: 1 << 16])]
            if numbers:
                found = draw.choice(numbers)
                data[found.start() : found.end()] = draw.choice([b"0", b"-7", b"9" * 20, b"1.5", b"7"])
        elif len(data) > 8:
            data[:8] = draw.choice([2**63, 2**31, 0, len(data), 7]).to_bytes(8, "little")
        if not data:
            break
    return bytes(data)


def beside(path: Path, files: dict[str, Any], name: str) -> None:
    """Write the other files of a tagger's folder."""
    if name.startswith("tagger's"):
        for other, (file, whole, _) in files.items():
            if other.startswith("tagger's"):
                (path.parent / file).write_bytes(whole)


NAMES = (
    *("text", "text with a header", "gzip", "zip", "binary", "vectors, mapped", "CoNLL", "scores", "learned"),
    *("record", "checkpoint", "about.json", "plan.json", "audit.json", "curves.jsonl", "row_changes.safetensors"),
    *("tagger's config.json", "tagger's words.json", "tagger's model.safetensors"),
)
SLOW = {"checkpoint": 10}  # as many times as slow
EACH = (100_000 if CASES >= SOAK else 1_000) // (len(NAMES) - 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_right_or_refused_in_one_line(name: str, files: dict[str, Any], tmp_path: Path) -> None:
    file, whole, read = files[name]
    draw = random.Random(f"{SEED} {name}")
    others = [content for _, content, _ in files.values()]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_as_it_is = tmp_path / file
    beside(read_as_it_is, files, name)
    read_as_it_is.write_bytes(whole)
    read(read_as_it_is)
    refused = 0
    for turn in range(EACH // SLOW.get(name, 1) + 1):
        content = damaged(whole, draw, others)
        read_as_it_is.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(read_as_it_is)
        except fl.FrostlineError as error:
            refused += 1
            message = str(error)
            one_line = isinstance(error, fl.FileError) and str(tmp_path) in message and "\n" not in message
            if not one_line:
                raise AssertionError(f"seed {SEED}, turn {turn}: {error!r}") from error
        except Exception as error:
            raise AssertionError(f"seed {SEED}, turn {turn}: {error!r} for {content[:300]!r}") from error
        counts.totals["damaged files"] += 1
    counts.totals["refused"] += refused
    assert refused
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"{grown:.0f} MB more"
