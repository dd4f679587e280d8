"""What the row optimizers share: gradients looked at before anything moves, state made when first needed.

Letters used for shapes in this file:
    V  rows of a parameter, its dimension 0 (a parameter without dimensions is one row)
    *  the shape of one row

A step has three parts: read every gradient and refuse what cannot be meant, make the state that is missing, update.
Only the last changes a value, so a step that fails in the first two, or in the closure, leaves everything as it was.

float16 and bfloat16 parameters are computed in float32 and rounded once; their state is float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from frostline.optim import huge_pages as pages
from frostline.optim.kernel import Gathered, gathered
from frostline.optim.sparse_grad import used_rows

COMPUTED_IN = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}


class RowOptimizer(torch.optim.Optimizer, ABC):
    """Base of the row optimizers: a subclass says which state it keeps and how it updates rows."""

    @abstractmethod
    def _check(self, group: dict[str, Any]) -> None:
        """Refuse options that cannot be meant; ValueError."""

    @abstractmethod
    def _state_names(self, group: dict[str, Any]) -> list[str]:
        """Name the state that the options of `group` need."""

    def _new_state(self, name: str, table: Tensor, group: dict[str, Any]) -> Tensor:
        """Make one piece of state for a table (V, *) that no step has used yet."""
        return pages.full_like(table, 0, COMPUTED_IN[table.dtype])

    @abstractmethod
    def _update(
        self,
        table: Tensor,
        rows: Tensor | None,
        grad: Tensor | Gathered,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        """Step on the given rows of the table, in place."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with options of its own, as `torch.optim.Optimizer.add_param_group` does.

        Args:
            param_group: `params`, and any option that differs from the optimizer's.

        Raises:
            ValueError: An option out of its range, or a parameter that is not a float16, bfloat16, float32 or float64
                tensor of its own (complex, or sharded over processes).
        """
        super().add_param_group(param_group)
        try:
            for parameter in self.param_groups[-1]["params"]:
                _check_parameter(parameter)
            lr = self.param_groups[-1]["lr"]
            require(not isinstance(lr, Tensor) or lr.numel() == 1, "lr", lr, "one number, or a tensor of one")
            self._check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise
        for parameter in self.param_groups[-1]["params"]:
            pages.collect(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the rows that the gradients use; leave every bit of the others, state included.

        Args:
            closure: Evaluates the model again, calls backward and returns the loss.

        Returns:
            What `closure` returned, or None.

        Raises:
            ValueError: A sparse gradient that is not over rows; no parameter and no state has changed.

        Cost: that of the rows in use. A dense gradient uses all of them.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    work.append((parameter, *_rows_and_grad(_table(parameter.grad), parameter.dtype), group))
        for parameter, _, _, group in work:
            missing = [name for name in self._state_names(group) if name not in self.state[parameter]]
            self.state[parameter].update({name: self._new_state(name, _table(parameter), group) for name in missing})
        for parameter, rows, grad, group in work:
            self._update(_table(parameter), rows, grad, self.state[parameter], group)
        return loss

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave; every state tensor keeps its dtype and becomes a copy of the optimizer's own.

        Args:
            state_dict: Made by an optimizer of the same class over parameters of the same shapes.

        Raises:
            ValueError: Groups, options or shapes that do not fit; nothing has been loaded.
        """
        loaded = []
        for ours, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            lacks = sorted(self.defaults.keys() - saved.keys())
            if lacks:
                raise ValueError(f"state_dict: has no {lacks[0]}, so no {type(self).__name__} made it.")
            for parameter, key in zip(ours["params"], saved["params"], strict=False):
                state = state_dict["state"].get(key, {})
                meta = _table(parameter).to("meta")
                for name in self._state_names(saved) if state else []:
                    expected = self._new_state(name, meta, saved)
                    found = state.get(name)
                    if found is None or found.shape != expected.shape:
                        shape = "nothing" if found is None else f"shape {tuple(found.shape)}"
                        raise ValueError(
                            f"state_dict: {name} of parameter {key} has {shape}, but the parameter of shape "
                            f"{tuple(parameter.shape)} needs {tuple(expected.shape)}. Load it into the same model."
                        )
                    loaded.append((parameter, name, found.to(parameter.device, expected.dtype, copy=True)))
        super().load_state_dict(state_dict)
        for parameter, name, value in loaded:  # torch has cast them to the dtype of the parameter
            self.state[parameter][name] = value


def require(holds: bool, name: str, value: object, legal: str) -> None:
    """Raise ValueError, naming the argument, its value and what is legal, unless `holds`."""
    if not holds:
        raise ValueError(f"{name}: {value}, but it must be {legal}.")


def require_at_least_zero(group: dict[str, Any], names: Iterable[str]) -> None:
    """Refuse options that are negative or NaN."""
    for name in names:
        require(bool(group[name] >= 0), name, group[name], "0 or more")


def _check_parameter(parameter: Tensor) -> None:
    kinds = "float16, bfloat16, float32 or float64"
    require(parameter.dtype in COMPUTED_IN, "params", f"a parameter of dtype {parameter.dtype}", kinds)
    whole = "a tensor of this process alone; use torch.optim for sharded ones"
    require(not hasattr(parameter, "device_mesh"), "params", "a DTensor", whole)


def _rows_and_grad(grad: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | Gathered]:
    """Return the rows that a gradient uses and what it says about them, in the form that the step is quickest with."""
    if grad.layout == torch.sparse_coo and grad.sparse_dim() == 1 and not grad.is_coalesced():
        done = gathered(grad._indices()[0], grad._values().to(COMPUTED_IN[dtype]), len(grad))
        if done is not None:
            return done
    return used_rows(grad, COMPUTED_IN[dtype])


def _table(tensor: Tensor) -> Tensor:
    return tensor.view(1) if tensor.dim() == 0 else tensor
