"""AdamW on the rows in use: moments, decay and bias correction of a row depend only on the steps that used it.

Letters used for shapes in this file:
    V  rows of a parameter        *  the shape of one row
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from frostline.optim.kernel import RowGradient, adamw_
from frostline.optim.row_optimizer import RowOptimizer, check_non_negative, check_option


class RowAdamW(RowOptimizer):
    """`torch.optim.AdamW` that changes only the rows that a step used, with sparse gradients and decay together.

    A row that no step used keeps its value and state, bit for bit. With dense gradients it does what
    `torch.optim.AdamW` does.

    Args:
        params: Parameters or groups, such as `plan.parameters()`; float16, bfloat16, float32 or float64.
        lr: Learning rate, 0 or more; a number or a tensor with one element.
        betas: Decay rates of the two running averages, each in [0, 1).
        eps: Added to the square root of the second moment, 0 or more.
        weight_decay: Each use first multiplies the row by `1 - lr * weight_decay`; 0 or more.
        amsgrad: Divide by the largest second moment so far.
        maximize: Maximize the objective instead of minimizing it.
        step_per_row: Correct the bias of a row's moments by the number of its own uses; False: by the number of steps.
            The moments of a rare row have been updated only as often as it was used; correcting them by all steps would
            make its first move about three times too long.

    Raises:
        ValueError: An option is out of its range, or a parameter has another dtype.

    Cost: a step costs the rows in use; state is `exp_avg`, `exp_avg_sq` and with `amsgrad` `max_exp_avg_sq`, (V, *)
    each, and `step`, one int32 per row.

    Example:
        >>> import frostline as fl
        >>> table = torch.nn.Embedding(3, 1, sparse=True)
        >>> _ = torch.nn.init.ones_(table.weight)
        >>> optimizer = fl.optim.RowAdamW(table.parameters(), lr=0.1, weight_decay=0.5)
        >>> table(torch.tensor([2, 2])).sum().backward()
        >>> optimizer.step()
        >>> table.weight.data.flatten(), optimizer.state[table.weight]["step"]
        (tensor([1.0000, 1.0000, 0.8500]), tensor([0, 0, 1], dtype=torch.int32))

    Source: Loshchilov and Hutter (2019), as in `torch.optim.AdamW`; the rows in use as in `torch.optim.SparseAdam`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        step_per_row: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "step_per_row": step_per_row,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        check_non_negative(group, ["lr", "eps", "weight_decay"])
        betas = group["betas"]
        check_option(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "betas", betas, "two numbers in [0, 1)")

    def _moves_rows_without_gradient(self, group: dict[str, Any]) -> bool:
        return True

    def _state_names(self, group: dict[str, Any]) -> list[str]:
        names = ["exp_avg", "exp_avg_sq", "step"]
        return [*names, "max_exp_avg_sq"] if group["amsgrad"] else names

    def _state_spec(self, name: str, table: Tensor, group: dict[str, Any]) -> tuple[tuple[int, ...], torch.dtype]:
        if name == "step":
            return ((len(table),) if group["step_per_row"] else ()), torch.int32
        return super()._state_spec(name, table, group)

    def _update(
        self,
        table: Tensor,
        rows: Tensor | None,
        grad: Tensor | RowGradient,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        beta1, beta2 = group["betas"]
        adamw_(
            table,
            rows,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["max_exp_avg_sq"] if group["amsgrad"] else None,
            state["step"],
            lr=float(group["lr"]),
            beta1=float(beta1),
            beta2=float(beta2),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )
