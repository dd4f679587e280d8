"""Base class of the row optimizers: gradients are checked before anything changes, state is made when first needed.

Letters used for shapes in this file:
    V  rows of a parameter, its dimension 0 (a parameter without dimensions is one row)
    *  the shape of one row

A step has three parts: check every gradient and state tensor against its parameter, make the missing state, update.
Only the last changes a value, so a step that fails in the first two, or in the closure, leaves everything as it was.

The kernel writes by address. A parameter whose shape has changed since its state was made (`weight.data = larger`, as
when a vocabulary grows) would send it past the end of that state, so nothing reaches it unchecked.

A dense gradient uses every row. Where it is that of a lookup, `x[ids]` or a table without `sparse=True`, most of its
rows are zero, and moving them is rarely what somebody wants who chose a row optimizer: that is said, once for each
parameter.

float16 and bfloat16 parameters are updated in float32 and rounded once; their state is float32.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from frostline.errors import StaleOptimizerError
from frostline.optim import huge_pages
from frostline.optim.kernel import RowGradient, group_by_row
from frostline.optim.sparse_grad import used_rows

COMPUTE_DTYPE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}


class RowOptimizer(torch.optim.Optimizer, ABC):
    """Base of the row optimizers: a subclass defines which state it keeps and how it updates rows."""

    @abstractmethod
    def _check(self, group: dict[str, Any]) -> None:
        """Raise ValueError for an invalid option."""

    @abstractmethod
    def _state_names(self, group: dict[str, Any]) -> list[str]:
        """Return the names of the state that the options of `group` need."""

    def _state_spec(self, name: str, table: Tensor, group: dict[str, Any]) -> tuple[tuple[int, ...], torch.dtype]:
        """Return the shape and dtype of a state tensor, for a table (V, *)."""
        return table.shape, COMPUTE_DTYPE[table.dtype]

    def _initial_value(self, name: str, group: dict[str, Any]) -> float:
        """Return what every element of a state tensor is before the first step."""
        return 0

    def _moves_rows_without_gradient(self, group: dict[str, Any]) -> bool:
        """Return whether a row moves whose gradient is zero: by decay, or by what is left of earlier gradients."""
        return bool(group["weight_decay"])

    @abstractmethod
    def _update(
        self,
        table: Tensor,
        rows: Tensor | None,
        grad: Tensor | RowGradient,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        """Update the given rows of the table, and their state, in place."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own options, as `torch.optim.Optimizer.add_param_group` does.

        Args:
            param_group: `params`, and any option that differs from the optimizer's defaults.

        Raises:
            ValueError: An option is out of its range, or a parameter is not a plain tensor of float16, bfloat16,
                float32 or float64 (complex, or sharded over processes).
        """
        super().add_param_group(param_group)
        try:
            for parameter in self.param_groups[-1]["params"]:
                _check_parameter(parameter)
            lr = self.param_groups[-1]["lr"]
            scalar = not isinstance(lr, Tensor) or lr.numel() == 1
            check_option(scalar, "lr", lr, "a number, or a tensor with one element")
            self._check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise
        for parameter in self.param_groups[-1]["params"]:
            huge_pages.collapse(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows that the gradients use; every other row keeps every bit, state included.

        Args:
            closure: Reevaluates the model, calls backward and returns the loss.

        Returns:
            The loss that `closure` returned, or None.

        Raises:
            ValueError: A sparse gradient is not over rows, or the dtype of a parameter is not supported any more.
            RuntimeError: A gradient has another shape than its parameter.
            StaleOptimizerError: State was made for another shape, dtype or device than its parameter has now.

            After each of these no parameter and no state has changed.

        Warns:
            UserWarning: The first gradient of a parameter is dense, and zero in half of its rows or more, which move.

        Cost: that of the rows in use. A dense gradient uses all of them.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    self._check_sizes(parameter, parameter.grad, group)
                    self._warn_of_zero_rows(parameter, parameter.grad, group)
                    updates.append((parameter, *_rows_and_grad(_table(parameter.grad), parameter.dtype), group))
        for parameter, _, _, group in updates:
            for name in self._state_names(group):
                if name not in self.state[parameter]:
                    shape, dtype = self._state_spec(name, _table(parameter), group)
                    value = self._initial_value(name, group)
                    self.state[parameter][name] = huge_pages.full(shape, value, dtype, parameter.device)
        for hook in self.__dict__.get("_rows_hooks", {}).values():
            for parameter, rows, _, _ in updates:
                hook(parameter, rows)
        for parameter, rows, grad, group in updates:
            self._update(_table(parameter), rows, grad, self.state[parameter], group)
        return loss

    def register_rows_pre_hook(self, hook: Callable[[Tensor, Tensor | None], None]) -> RemovableHandle:
        """Call `hook(parameter, rows)` before a step changes rows of a parameter.

        Args:
            hook: Is given the row ids, int64, sorted, shape (n,); None if the gradient is dense and all rows change. A
                copied optimizer has no hooks.

        Returns:
            A handle; its `remove()` removes the hook.
        """
        hooks = self.__dict__.setdefault("_rows_hooks", OrderedDict())
        handle = RemovableHandle(hooks)
        hooks[handle.id] = hook
        return handle

    def _check_sizes(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Raise unless the gradient and the state fit the parameter as it is now."""
        _check_parameter(parameter)
        if grad.shape != parameter.shape:
            raise RuntimeError(
                f"grad: shape {tuple(grad.shape)}, but its parameter has shape {tuple(parameter.shape)} now. "
                "Call zero_grad() before the shape of a parameter changes."
            )
        for name in self._state_names(group):
            found = self.state[parameter].get(name) if parameter in self.state else None
            shape, dtype = self._state_spec(name, _table(parameter), group)
            if found is not None and (found.shape, found.dtype, found.device) != (shape, dtype, parameter.device):
                raise StaleOptimizerError(
                    f"optimizer: {type(self).__name__}: its state {name!r} is {found.dtype} of shape "
                    f"{tuple(found.shape)} on {found.device}, but a parameter of shape {tuple(parameter.shape)} on "
                    f"{parameter.device} needs {dtype} of shape {tuple(shape)}. Make a new optimizer."
                )

    def _warn_of_zero_rows(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Warn if a dense gradient makes rows move that have no gradient; look once at each parameter."""
        looked_at: set[int] = self.__dict__.setdefault("_looked_at", set())  # a copied optimizer has none
        if grad.layout != torch.strided or grad.dim() < 2 or id(parameter) in looked_at:
            return
        looked_at.add(id(parameter))
        if not self._moves_rows_without_gradient(group):
            return
        used = int(grad.flatten(1).any(1).sum())
        if 0 < used <= len(grad) // 2:
            warnings.warn(
                f"{type(self).__name__}: the gradient of a parameter of shape {tuple(parameter.shape)} is dense, so "
                f"all its {len(grad):,} rows move, also the {len(grad) - used:,} whose gradient is zero. To change "
                "only the rows in use, look them up by F.embedding(ids, x, sparse=True), not x[ids], or "
                "nn.Embedding(sparse=True); or name those that learn: fl.rows.",
                stacklevel=5,
            )

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict()`; every state tensor is copied and keeps the dtype that this optimizer uses for it.

        Args:
            state_dict: From an optimizer of the same class over parameters of the same shapes.

        Raises:
            ValueError: Groups, options or shapes do not match; nothing has been loaded.
        """
        loaded = []
        for ours, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            missing = sorted(self.defaults.keys() - saved.keys())
            if missing:
                raise ValueError(f"state_dict: has no {missing[0]}, so it is not from a {type(self).__name__}.")
            for parameter, key in zip(ours["params"], saved["params"], strict=False):
                state = state_dict["state"].get(key, {})
                for name in self._state_names(saved) if state else []:
                    expected, dtype = self._state_spec(name, _table(parameter), saved)
                    found = state.get(name)
                    if found is None or found.shape != expected:
                        shape = "nothing" if found is None else f"shape {tuple(found.shape)}"
                        raise ValueError(
                            f"state_dict: {name} of parameter {key} has {shape}, but the parameter of shape "
                            f"{tuple(parameter.shape)} needs {tuple(expected)}. Load it into the same model."
                        )
                    loaded.append((parameter, name, found.to(parameter.device, dtype, copy=True)))
        super().load_state_dict(state_dict)
        for parameter, name, value in loaded:  # torch's loading has cast them to the dtype of the parameter
            self.state[parameter][name] = value


def check_option(valid: bool, name: str, value: object, legal: str) -> None:
    """Raise ValueError with the argument, its value and what is legal, unless `valid`."""
    if not valid:
        raise ValueError(f"{name}: {value}, but it must be {legal}.")


def check_non_negative(group: dict[str, Any], names: Iterable[str]) -> None:
    """Raise ValueError for an option that is negative or NaN."""
    for name in names:
        check_option(bool(group[name] >= 0), name, group[name], "0 or more")


def _check_parameter(parameter: Tensor) -> None:
    dtypes = "float16, bfloat16, float32 or float64"
    check_option(parameter.dtype in COMPUTE_DTYPE, "params", f"a parameter of dtype {parameter.dtype}", dtypes)
    local = "a tensor of this process alone; use torch.optim for sharded ones"
    check_option(not hasattr(parameter, "device_mesh"), "params", "a DTensor", local)


def _rows_and_grad(grad: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | RowGradient]:
    """Return the rows that a gradient uses and their summed gradient, in the form that is fastest to step with."""
    if grad.layout == torch.sparse_coo and grad.sparse_dim() == 1 and not grad.is_coalesced():
        grouped = group_by_row(grad._indices()[0], grad._values().to(COMPUTE_DTYPE[dtype]), len(grad))
        if grouped is not None:
            return grouped
    return used_rows(grad, COMPUTE_DTYPE[dtype])


def _table(tensor: Tensor) -> Tensor:
    """Return the tensor with at least one dimension: a scalar parameter is a table of one row."""
    return tensor.view(1) if tensor.dim() == 0 else tensor
