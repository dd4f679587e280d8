"""Optimizers that change only the rows that a step used; a row that it did not use keeps every bit, state included.

Names load on first use: compiler.py, which word2vec shares, does not need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.optim.adagrad import RowAdagrad
    from frostline.optim.adamw import RowAdamW
    from frostline.optim.clip import clip_grad_norm_
    from frostline.optim.kernel import Backend, backend
    from frostline.optim.sgd import RowSGD

_HOME = {
    "Backend": "kernel",
    "RowAdagrad": "adagrad",
    "RowAdamW": "adamw",
    "RowSGD": "sgd",
    "backend": "kernel",
    "clip_grad_norm_": "clip",
}

__all__ = ["Backend", "RowAdagrad", "RowAdamW", "RowSGD", "backend", "clip_grad_norm_"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"frostline.optim.{_HOME[name]}"), name)
    raise AttributeError(f"module 'frostline.optim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
