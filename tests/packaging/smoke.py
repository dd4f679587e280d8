"""Use an installed frostline as its first user would, and print what its kernels are and what they computed.

Run:    python smoke.py [WHICH ...]

WHICH is `chosen` for the kernels that frostline chooses, an instruction set such as `x86-64-v2` for those that were
prebuilt for it, or `compiled`. Each prints a line of JSON. Needs torch, numpy and safetensors only.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import frostline as fl
from frostline import word2vec
from frostline.changes import compiled as changes_kernel
from frostline.optim import kernel, prebuilt
from frostline.word2vec import compiled as word2vec_kernels


def plan():
    """Train three rows of a table: they move, and the others keep every bit."""
    model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 2))
    before = model[0].weight.detach().clone()
    plan = fl.train_only(model, {"*": fl.everything, "0.weight": fl.rows([3, 7, 11])})
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1, weight_decay=0.1)
    model(torch.arange(50)).logsumexp(1).sum().backward()
    optimizer.step()
    fl.merge(model)
    return (model[0].weight != before).any(1).nonzero().flatten().tolist()


def row_steps(dtype):
    """Three steps of each row optimizer, with rows that are named twice; return the tables."""
    generator = torch.Generator().manual_seed(0)
    tables = []
    for make in (
        lambda p: fl.optim.RowAdamW(p, lr=0.1, amsgrad=True),
        lambda p: fl.optim.RowSGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: fl.optim.RowAdagrad(p, lr=0.1, weight_decay=0.1),
        lambda p: fl.optim.RowAdagrad(p, lr=0.1, rowwise=True),
    ):
        table = torch.nn.Parameter(torch.randn(90, 37, generator=generator, dtype=dtype))
        optimizer = make([table])
        for _ in range(3):
            ids = torch.randint(90, (1, 60), generator=generator)
            values = torch.randn(60, 37, generator=generator, dtype=dtype)
            table.grad = torch.sparse_coo_tensor(ids, values, table.shape, check_invariants=False)
            optimizer.step()
        tables.append(table)
    return tables


def word_vectors(threads):
    """Train vectors on a file of text; return the bytes of their matrix."""
    words = np.random.default_rng(0).integers(300, size=(400, 25)) ** 2 // 300
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("\n".join(" ".join(f"w{word}" for word in line) for line in words.tolist()))
        settings = word2vec.Settings(dim=37, epochs=2, min_count=1)
        return np.asarray(word2vec.train(text, settings, threads=threads).vectors.matrix).tobytes()


def kernels_of(level):
    """Forget the kernels that are loaded, allow those of one instruction set, and return what is loaded then."""
    prebuilt.LEVELS = LEVELS if level == "chosen" else {name: LEVELS[name] for name in LEVELS if name == level}
    for load_once in (kernel._load_once, changes_kernel._load_once, word2vec_kernels._load_once):
        load_once.cache_clear()
    return [
        str(fl.optim.backend()),
        "changes: " + changes_kernel._load_once()[1],
        *(f"{name}: {word2vec_kernels._load_once(name)[1]}" for name in ("kernel.cpp", "encoder.cpp")),
    ]


def results():
    """Return what the kernels compute, as hashes."""
    tables = {str(dtype): row_steps(dtype) for dtype in (torch.float32, torch.float64)}
    state = torch.nn.ParameterDict({str(number): table for number, table in enumerate(tables["torch.float32"])})
    optim = {
        dtype: hashlib.sha256(b"".join(table.detach().numpy().tobytes() for table in made)).hexdigest()
        for dtype, made in tables.items()
    }
    vectors = hashlib.sha256(word_vectors(threads=2)).hexdigest()
    return {"optim": optim, "changes": str(fl.digest(state)), "word2vec": vectors}


LEVELS = prebuilt.LEVELS

if __name__ == "__main__":
    about = {"frostline": str(Path(fl.__file__).parent), "torch": torch.__version__, "moved": plan()}
    for level in sys.argv[1:] or ["chosen"]:
        print(json.dumps({**about, "kernels": kernels_of(level), "results": results()}))
