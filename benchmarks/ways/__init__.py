"""Several ways to train some rows of a table: frostline's, a masked gradient, two tables, and so on.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    R  rows that learn            n  ids of a batch
Each way is a function of the table (V, D), which it may store and modify, and the ids of the rows that learn (R,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frostline as fl


@dataclass
class Way:
    """One way to train a part of a table.

    Attributes:
        look_up: ids (n,) -> rows (n, D).
        learns: The Parameters of the table, for the optimizer.
        read: Returns the current table (V, D).
        after: Called after every optimizer step.
        sparse: Whether the gradient of `learns` is sparse.
    """

    look_up: Callable[[Tensor], Tensor]
    learns: list[nn.Parameter]
    read: Callable[[], Tensor]
    after: Callable[[], None] = lambda: None
    sparse: bool = False


def frozen(table: Tensor, rows: Tensor) -> Way:
    """No row of the table learns."""
    embedding = nn.Embedding(len(table), table.shape[1], _weight=table).requires_grad_(False)
    return Way(embedding, [], lambda: embedding.weight)


def partial(table: Tensor, rows: Tensor, sparse: bool = False) -> Way:
    """The rows learn, as a partial tensor."""
    embedding = nn.Embedding(len(table), table.shape[1], _weight=table, sparse=sparse)
    plan = fl.train_only(embedding, {"weight": fl.rows(rows)})
    return Way(embedding, plan.parameters(), lambda: embedding.weight.detach().clone(), sparse=sparse)


def sparse(table: Tensor, rows: Tensor) -> Way:
    """The same, with a sparse gradient."""
    return partial(table, rows, sparse=True)


def hook(table: Tensor, rows: Tensor) -> Way:
    """The whole table learns; a hook multiplies its gradient by the mask."""
    weight, mask = nn.Parameter(table), _mask(table, rows)
    weight.register_hook(lambda gradient: gradient * mask)
    return Way(lambda ids: F.embedding(ids, weight), [weight], lambda: weight)


def mask_and_stop(table: Tensor, rows: Tensor) -> Way:
    """Every forward computes the table from a part with gradient and a part without."""
    weight, mask = nn.Parameter(table), _mask(table, rows)
    return Way(lambda ids: F.embedding(ids, mask * weight + ((1 - mask) * weight).detach()), [weight], lambda: weight)


def two_tables(table: Tensor, rows: Tensor) -> Way:
    """A constant and a variable, concatenated in every forward."""
    frozen_ids = frozen_rows(table, rows)
    new_id = torch.empty(len(table), dtype=torch.int64)
    new_id[torch.cat([frozen_ids, rows])] = torch.arange(len(table))
    constant, variable = table[frozen_ids], nn.Parameter(table[rows])
    return Way(
        lambda ids: F.embedding(new_id[ids], torch.cat([constant, variable])),
        [variable],
        lambda: torch.cat([constant, variable])[new_id],
    )


def restore(table: Tensor, rows: Tensor) -> Way:
    """Everything steps, and the frozen rows are written back."""
    weight, frozen_ids = nn.Parameter(table), frozen_rows(table, rows)
    values = table[frozen_ids]

    @torch.no_grad()
    def write_back() -> None:
        weight.index_copy_(0, frozen_ids, values)

    return Way(lambda ids: F.embedding(ids, weight), [weight], lambda: weight, write_back)


def peft(table: Tensor, rows: Tensor) -> Way:
    """PEFT's trainable tokens."""
    from peft import TrainableTokensConfig, get_peft_model

    base = nn.ModuleDict({"embed": nn.Embedding(len(table), table.shape[1], _weight=table).requires_grad_(False)})
    get_peft_model(base, TrainableTokensConfig(target_modules=["embed"], token_indices=rows.tolist()))
    layer: Any = base["embed"]
    learns = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return Way(layer, learns, lambda: layer(torch.arange(len(table))))


WAYS: dict[str, Callable[[Tensor, Tensor], Way]] = {
    "frozen": frozen,
    "partial": partial,
    "sparse": sparse,
    "hook": hook,
    "mask+stop": mask_and_stop,
    "two tables": two_tables,
    "restore": restore,
    "peft": peft,
}


def _mask(table: Tensor, rows: Tensor) -> Tensor:
    return torch.zeros(len(table), 1).index_fill_(0, rows, 1.0)


def frozen_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return the rows that do not learn."""
    return (_mask(table, rows).squeeze(1) == 0).nonzero().squeeze(1)
