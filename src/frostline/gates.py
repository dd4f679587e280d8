"""Two gates for gradients: the forward is the identity, the backward stops or scales the gradient.

Letters used for shapes in this file:
    *  any shape of values, called `x`

Stopping is `torch.where` between `x` and a detached `x`. Its backward is a `where` too, so a stopped element gets an
exact 0 whatever its gradient would be. (Multiplying by a 0/1 mask instead gives 0 * Inf = NaN.) Scaling is the product
`x * scale` with the values of `x` copied back into it: only the derivative of the product remains, of every order and
in every mode, without a custom `autograd.Function`, whose higher derivatives torch.compile (2.13) gets wrong. Both
return new memory, so writing into the result changes neither `x` nor what backward needs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary

from frostline.errors import ShapeError


def stop_gradient(x: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the values of `x`, but let no gradient through where `where` is True.

    Args:
        x: Any floating-point or complex tensor, shape (*).
        where: Bool tensor that broadcasts to (*), on the device of `x`; True stops. None stops everything, like
            `x.detach()`, but in memory of its own.

    Returns:
        A new tensor equal to `x` bit for bit, shape (*), dtype of `x`. Writing into it does not change `x`.

    Raises:
        ShapeError: `where` does not broadcast to the shape of `x`.
        TypeError: `where` is not a bool tensor (pass `where=(mask != 0)` for a 0/1 mask), or `x` holds integers.
        ValueError: `where` is on another device than `x`.

    Cost: one select of shape (*), forward and backward. A stopped entry's gradient is exactly 0, even under Inf or NaN.

    Example:
        >>> import frostline as fl
        >>> x = torch.ones(3, requires_grad=True)
        >>> fl.stop_gradient(x, where=torch.tensor([True, False, False])).sum().backward()
        >>> x.grad
        tensor([0., 1., 1.])

    Source: TensorFlow's `tf.stop_gradient`, made selective.
    """
    x = _checked_input(x)
    if where is None:
        return x.detach().clone()
    if not isinstance(where, Tensor):
        raise TypeError(f"where: {type(where).__name__}, but it must be a bool tensor. Pass `torch.as_tensor(where)`.")
    if where.layout != torch.strided:
        raise TypeError("where: a sparse tensor. Pass `where=mask.to_dense()`.")
    if where.dtype != torch.bool:
        raise TypeError(
            f"where: dtype {where.dtype}, but it must be torch.bool, True where the gradient stops. "
            "Pass `where=(mask != 0)` for a 0/1 mask in which 1 stops, `where=(mask == 0)` for one in which 1 learns."
        )
    _check_broadcasts("where", where, x)
    return torch.where(where, x.detach(), x)


def scale_gradient(x: Tensor, scale: float | Tensor) -> Tensor:
    """Return the values of `x`, and multiply the gradient by `scale` on its way back.

    Adam, AdamW, RAdam and NAdam divide each gradient by a running average of its size, so a constant scale cancels out:
    with `scale=0.1` an entry still moves 0.9999 times as far under Adam (0.102 times under SGD). To slow down a tensor
    under these, give it a parameter group with its own learning rate:
    `torch.optim.Adam([{"params": slow, "lr": 1e-4}, {"params": rest}], lr=1e-3)`.

    Args:
        x: Any floating-point or complex tensor, shape (*).
        scale: A finite number, or a real tensor that broadcasts to (*), on the device of `x`. A negative scale
            reverses the gradient. The scale is a constant: it gets no gradient. The values of a tensor are not checked,
            and 0 times an infinite gradient is NaN: use `stop_gradient` to stop.

    Returns:
        A new tensor equal to `x` bit for bit, shape (*), dtype of `x`. Writing into it does not change `x`.

    Raises:
        ShapeError: `scale` does not broadcast to the shape of `x`.
        TypeError: `scale` is not a real number or tensor, or `x` holds integers.
        ValueError: `scale` is NaN or infinite, or on another device than `x`.

    Cost: one product and one copy of shape (*) forward, one product backward.

    Example:
        >>> import frostline as fl
        >>> x = torch.ones(2, requires_grad=True)
        >>> fl.scale_gradient(x, 0.5).sum().backward()
        >>> x.grad
        tensor([0.5000, 0.5000])

    Source: the gradient reversal layer of Ganin and Lempitsky (2015), with a scale of any sign.
    """
    x = _checked_input(x)
    if isinstance(scale, Tensor):
        if scale.is_complex():
            raise TypeError(f"scale: dtype {scale.dtype}, but it must be real. Pass `scale.real` or `scale.abs()`.")
        _check_broadcasts("scale", scale, x)
        scale = scale.detach().to(x.dtype)
    elif not isinstance(scale, (int, float)):
        raise TypeError(f"scale: {type(scale).__name__}, but it must be a number or a tensor. Pass `float(scale)`.")
    elif not -math.inf < scale < math.inf:  # `math.isfinite` would not work on a compiler's symbolic float
        raise ValueError(f"scale: {scale}, but it must be finite. Pass 0.1 for a tenth of the gradient.")
    result = x * scale
    result.detach().copy_(x.detach())  # detached: neither autograd nor forward mode records the copy
    return result


def _checked_input(x: Tensor) -> Tensor:
    """Check `x`; return a plain copy, made once, if it overrides torch's functions, as a partial tensor does."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: {type(x).__name__}, but it must be a tensor. Pass `torch.as_tensor(x)`.")
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"x: dtype {x.dtype} has no gradient. Pass a floating-point tensor, such as `x.float()`.")
    return x.clone() if has_torch_function_unary(x) else x


def _check_broadcasts(name: str, value: Tensor, x: Tensor) -> None:
    theirs, ours = tuple(value.shape), tuple(x.shape)
    matching = all(a in (1, b) for a, b in zip(reversed(theirs), reversed(ours), strict=False))
    if len(theirs) > len(ours) or not matching:
        raise ShapeError(
            f"{name}: shape {theirs} does not broadcast to the shape of x, {ours}. "
            f"Give {name} the shape of x, with 1 where one value is for a whole dimension{_hint(name, theirs, ours)}."
        )
    if value.device != x.device and value.dim() > 0:
        raise ValueError(f"{name}: on {value.device}, but x is on {x.device}. Pass `{name}.to(x.device)`.")


def _hint(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> str:
    """Return the fix for the most common mistake: one value for each row, without the trailing dimensions."""
    if theirs and len(theirs) < len(ours) and ours[: len(theirs)] == theirs:
        return f": one value a row is `{name}[{', '.join([':'] * len(theirs) + ['None'] * (len(ours) - len(theirs)))}]`"
    return ""
