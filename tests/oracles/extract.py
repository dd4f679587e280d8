"""Make the small arrays in data/ from the full reference files.

Run:  python tests/oracles/extract.py [FOLDER]    (FOLDER: FROSTLINE_SHARED/oracles, else `shared/oracles` beside
                                                   the checkout)

The reference files were computed with TensorFlow 2.21 in graph mode. Kept are the inputs, the losses of every step,
and tables after a few steps. Runs that differ only in their name are stacked: `fix_f64_E[i]` belongs to `fix_names[i]`,
"<loss>_<optimizer>_<variant>".
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
OPTIMIZERS = ("sgd", "momentum", "adam", "adagrad", "rmsprop")
FIX_STEPS = (5, 10)
O2_STEPS = 60


def main() -> None:
    shared = os.environ.get("FROSTLINE_SHARED") or str(HERE.parents[1] / ".." / "shared")
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else shared + "/oracles")
    (HERE / "data").mkdir(exist_ok=True)
    for name, take in {
        "o1_entry_stop_gradients": o1,
        "o2_w1w2w3": o2,
        "o3_embedding_lookup": o3,
        "o4_ner_bilstm": o4,
    }.items():
        np.savez_compressed(HERE / "data" / f"{name}.npz", **take(np.load(folder / f"{name}.npz")))


def o1(source: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    taken = {name: source[name] for name in ("E0", "parm", "t_full", "w", "t_lookup", "ids", "mask", "mask2")}
    wanted = ("demo_", "edge_", "grad_f64_")
    taken |= {n: source[n] for n in source.files if n.startswith(wanted) and ("_matrix" not in n or "edge" in n)}

    fixed = [n[8:-2] for n in source.files if n.startswith("fix_f64_") and n.endswith("_E")]
    taken["fix_names"] = np.array(fixed)
    taken["fix_f64_E"] = np.stack([source[f"fix_f64_{n}_E"][list(FIX_STEPS)] for n in fixed])
    taken["fix_f32_E"] = np.stack([source[f"fix_f32_{n}_E"][-1] for n in fixed])
    for dtype in ("f64", "f32"):
        taken[f"fix_{dtype}_loss"] = np.stack([source[f"fix_{dtype}_{n}_loss"] for n in fixed])

    for kind in ("flip", "wd", "l2", "clip"):
        names = [n[len(kind) + 5 : -2] for n in source.files if n.startswith(f"{kind}_f64_")]
        taken[f"{kind}_names"] = np.array(names)
        taken[f"{kind}_f64_E"] = np.stack([source[f"{kind}_f64_{n}_E"][-1] for n in names])
    return taken


def o2(source: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    taken = {name: source[name] for name in ("w1_init", "w2_init", "w3_init")} | {"x": source["x"][:O2_STEPS]}
    for kind in ("stop", "varlist", "plain", "stop_adam", "plain_adam"):
        taken[f"{kind}_loss"] = source[f"{kind}_loss"][:O2_STEPS]
        taken[f"{kind}_grad_w1"] = source[f"{kind}_grad_w1"][:2]
        for weight in ("w1", "w2", "w3"):
            taken[f"{kind}_{weight}"] = source[f"{kind}_{weight}"][[1, O2_STEPS // 2, O2_STEPS]]
    return taken


def o3(source: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    given = ("x_init", "w", "sched", "t", "f64_sgd_grad_values", "f64_sgd_grad_indices")
    taken = {n: source[n] for n in source.files if n in given or n.startswith(("seed_", "dup_"))}
    for name in OPTIMIZERS:
        for kind in (f"f64_{name}_x", f"f64_{name}_loss", f"f64_{name}_changed", f"f32_{name}_loss"):
            taken[kind] = source[kind]
        lasts = [n for n in source.files if n.startswith(f"f64_{name}_slot_")]
        lasts += [f"f32_{name}_x", f"f64_{name}_densified_x", f"scale_f64_{name}_x"]
        taken |= {n: source[n][-1] for n in lasts}
    return taken


def o4(source: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    left_out = ("_traj", "_kernel", "_bias", "_m", "_v", "adam5_dense", "sgd5_dense", "_indices", "_values")
    keep = ("grad_", "torch_")
    return {n: source[n] for n in source.files if n.startswith(keep) or not n.endswith(left_out)}


if __name__ == "__main__":
    main()
