"""SGD on the rows in use, with lazy momentum: the momentum of a row changes only when the row is used.

Letters used for shapes in this file:
    V  rows of a parameter        *  the shape of one row
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from frostline.optim.kernel import RowGradient, sgd_
from frostline.optim.row_optimizer import RowOptimizer, check_non_negative, check_option


class RowSGD(RowOptimizer):
    """`torch.optim.SGD` that changes only the rows that a step used.

    With sparse gradients, a row that is not in the batch keeps its value and its momentum, bit for bit, until its next
    use. (The momentum of `torch.optim.SGD` keeps moving rows after their last use.) With dense gradients it does what
    `torch.optim.SGD` does.

    Args:
        params: Parameters or groups, such as `plan.parameters()`; float16, bfloat16, float32 or float64.
        lr: Learning rate, 0 or more; a number or a tensor with one element.
        momentum: Momentum factor, 0 or more, applied at each use of a row.
        dampening: A gradient is added to the momentum times `1 - dampening`; undampened at the first use of a row.
        weight_decay: L2 penalty, 0 or more, on the rows in use.
        nesterov: Nesterov momentum; requires momentum and no dampening.
        maximize: Maximize the objective instead of minimizing it.

    Raises:
        ValueError: An option is out of its range, or a parameter has another dtype.

    Cost: a step costs the rows in use; state, only with momentum, is `momentum_buffer` (V, *) and, with dampening, one
    bool per row.

    Example:
        >>> import frostline as fl
        >>> table = torch.nn.Embedding(3, 1, sparse=True)
        >>> _ = torch.nn.init.ones_(table.weight)
        >>> optimizer = fl.optim.RowSGD(table.parameters(), lr=0.1, weight_decay=0.5)
        >>> table(torch.tensor([2, 2])).sum().backward()
        >>> optimizer.step()
        >>> table.weight.data.flatten()
        tensor([1.0000, 1.0000, 0.7500])

    Source: `torch.optim.SGD`; the momentum is that of TensorFlow's `MomentumOptimizer` on sparse gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        check_non_negative(group, ["lr", "momentum", "weight_decay"])
        possible = group["momentum"] > 0 and group["dampening"] == 0
        given = f"True with momentum {group['momentum']} and dampening {group['dampening']}"
        check_option(possible or not group["nesterov"], "nesterov", given, "False without momentum or with dampening")

    def _moves_rows_without_gradient(self, group: dict[str, Any]) -> bool:
        return bool(group["momentum"] or group["weight_decay"])

    def _state_names(self, group: dict[str, Any]) -> list[str]:
        if group["momentum"] == 0:
            return []
        return ["momentum_buffer"] if group["dampening"] == 0 else ["momentum_buffer", "used"]

    def _state_spec(self, name: str, table: Tensor, group: dict[str, Any]) -> tuple[tuple[int, ...], torch.dtype]:
        return ((len(table),), torch.bool) if name == "used" else super()._state_spec(name, table, group)

    def _update(
        self,
        table: Tensor,
        rows: Tensor | None,
        grad: Tensor | RowGradient,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        names = self._state_names(group)
        sgd_(
            table,
            rows,
            grad,
            state["momentum_buffer"] if "momentum_buffer" in names else None,
            state["used"] if "used" in names else None,
            lr=float(group["lr"]),
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )
