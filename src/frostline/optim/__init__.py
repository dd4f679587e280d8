"""Optimizers that change only the rows that a step used; a row that it did not use keeps every bit, state included."""

from frostline.optim.adagrad import RowAdagrad
from frostline.optim.adamw import RowAdamW
from frostline.optim.clip import clip_grad_norm_
from frostline.optim.kernel import Backend, backend
from frostline.optim.sgd import RowSGD

__all__ = ["Backend", "RowAdagrad", "RowAdamW", "RowSGD", "backend", "clip_grad_norm_"]
