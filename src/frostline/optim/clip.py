"""Clip dense and sparse gradients by their total norm.

Letters used for shapes in this file:
    *  any shape of a gradient
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from frostline.optim.sparse_grad import used_rows


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients, dense and sparse, so that their total norm is at most `max_norm`.

    The norm is that of the equivalent dense gradients: entries of a sparse gradient for the same row are summed first.

    Args:
        parameters: A parameter or several; those without a gradient are skipped.
        max_norm: The largest norm allowed.
        norm_type: Which p-norm; `float("inf")` for the largest absolute value.
        error_if_nonfinite: Raise if the norm is NaN or infinite, before any gradient is scaled.
        foreach: As in torch: True, False, or None, where torch chooses.

    Returns:
        The norm before clipping, shape ().

    Raises:
        RuntimeError: The norm is NaN or infinite, and `error_if_nonfinite` is True.

    Cost: a pass over the dense gradients; for a sparse one a sort of its ids and a pass over its entries, whatever the
    size of the table. Sparse gradients are scaled in place and stay sparse.

    Example:
        >>> import frostline as fl
        >>> table = torch.nn.Embedding(9, 1, sparse=True)
        >>> (table(torch.tensor([2, 2, 5])) * 2).sum().backward()
        >>> fl.clip_grad_norm_(table.parameters(), max_norm=1.0)
        tensor(4.4721)

    Source: `torch.nn.utils.clip_grad_norm_`, which fails on sparse gradients.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(grad.is_sparse for grad in grads):
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    summed = [_summed_values(grad) for grad in grads]
    norm = torch.nn.utils.get_total_norm(
        [values for values in summed if values.numel()] or [summed[0].new_zeros(1)],
        norm_type,
        error_if_nonfinite,
        foreach,
    )
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        (grad._values() if grad.is_sparse else grad).mul_(scale.to(grad.device))
    return norm


def _summed_values(grad: Tensor) -> Tensor:
    """Return the values of the equivalent dense gradient, without rows of zeros."""
    if grad.is_sparse and grad.sparse_dim() > 1:
        return grad.coalesce()._values()
    return used_rows(grad, grad.dtype)[1]
