"""Adagrad on the rows in use, with a sum of squares for each parameter or one for each row.

Letters used for shapes in this file:
    V  rows of a parameter        *  the shape of one row
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from frostline.optim.kernel import RowGradient, adagrad_
from frostline.optim.row_optimizer import COMPUTE_DTYPE, RowOptimizer, check_non_negative


class RowAdagrad(RowOptimizer):
    """`torch.optim.Adagrad` that changes only the rows that a step used, with decay and sparse gradients together.

    A row that no step used keeps its value and state, bit for bit. With dense gradients it does what
    `torch.optim.Adagrad` does.

    Args:
        params: Parameters or groups, such as `plan.parameters()`; float16, bfloat16, float32 or float64.
        lr: Learning rate, 0 or more; a number or a tensor with one element.
        lr_decay: At use t of a row, counted from 1, its rate is `lr / (1 + (t - 1) * lr_decay)`; 0 or more.
        weight_decay: L2 penalty, 0 or more, on the rows in use.
        initial_accumulator_value: Initial value of the sums, 0 or more.
        eps: Added to the square root of the sums, 0 or more.
        maximize: Maximize the objective instead of minimizing it.
        rowwise: Keep one sum per row, of the mean of its squared gradient, instead of one per parameter: the state is
            smaller by the width of the table, and all parameters of a row share one rate.

    Raises:
        ValueError: An option is out of its range, or a parameter has another dtype.

    Cost: a step costs the rows in use; state is `sum`, (V, *) or with `rowwise` (V,), and with `lr_decay` an int32 per
    row.

    Example:
        >>> import frostline as fl
        >>> table = torch.nn.Embedding(3, 2, sparse=True)
        >>> _ = torch.nn.init.ones_(table.weight)
        >>> optimizer = fl.optim.RowAdagrad(table.parameters(), lr=0.5, rowwise=True)
        >>> (table(torch.tensor([2, 2])) * torch.tensor([1.0, 7.0])).sum().backward()
        >>> optimizer.step()
        >>> table.weight.data[2], optimizer.state[table.weight]["sum"]
        (tensor([0.9000, 0.3000]), tensor([  0.,   0., 100.]))

    Source: Duchi, Hazan and Singer (2011), as in `torch.optim.Adagrad`; one sum per row as in PyTorch-BigGraph (2019).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        rowwise: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "maximize": maximize,
            "rowwise": rowwise,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        check_non_negative(group, ["lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value"])

    def _state_names(self, group: dict[str, Any]) -> list[str]:
        return ["sum"] if group["lr_decay"] == 0 else ["sum", "step"]

    def _state_spec(self, name: str, table: Tensor, group: dict[str, Any]) -> tuple[tuple[int, ...], torch.dtype]:
        if name == "step":
            return (len(table),), torch.int32
        return table.shape[:1] if group["rowwise"] else table.shape, COMPUTE_DTYPE[table.dtype]

    def _initial_value(self, name: str, group: dict[str, Any]) -> float:
        return float(group["initial_accumulator_value"]) if name == "sum" else 0

    def _update(
        self,
        table: Tensor,
        rows: Tensor | None,
        grad: Tensor | RowGradient,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        adagrad_(
            table,
            rows,
            grad,
            state["sum"],
            state["step"] if "step" in self._state_names(group) else None,
            lr=float(group["lr"]),
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )
