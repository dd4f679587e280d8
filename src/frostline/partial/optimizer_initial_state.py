"""The state that an optimizer begins with, found by letting a copy of it begin.

No optimizer says what its state is before its first step: Adagrad's sums begin at `initial_accumulator_value`, the
steps of Rprop at `lr`, schedule-free optimizers with the values themselves. So a copy takes one step, with a gradient
of zero, on a stand-in for the parameter; what it puts into its state is noted as it is put there, before the step goes
on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import StaleOptimizerError


def fresh_state(optimizer: Optimizer, group: Mapping[str, Any], values: Tensor) -> dict[str, Any]:
    """The state that `optimizer` makes for a parameter that it has never seen.

    Args:
        optimizer: It, its state, its groups and the random generators stay as they are; its hooks do not run.
        group: Its group that the parameter would be in. Decay is left out: what begins is not to depend on it.
        values: The values of the parameter; they stay as they are too.

    Returns:
        State key -> what the optimizer first puts there: tensors of its own, numbers, or anything else.

    Raises:
        StaleOptimizerError: The optimizer does not take a parameter of this shape and dtype.

    Cost: one step of the optimizer on a copy of `values`.
    """
    refusals = []
    for sparse in (False, True):
        parameter = nn.Parameter(values.detach().clone())
        parameter.grad = _no_gradient(parameter, sparse)
        other, state = _copy_of(optimizer, {**group, "params": [parameter]})
        try:
            with torch.random.fork_rng([values.device] if values.is_cuda else []):
                _unhooked(type(optimizer).step)(other)
            return state.first
        except Exception as error:
            refusals.append(" ".join(f"{type(error).__name__}: {error}".split())[:200])
    raise StaleOptimizerError(
        f"optimizer: {type(optimizer).__name__} does not take what learns now, {values.dtype} of shape "
        f"{tuple(values.shape)} ({refusals[0]}). Make a new optimizer from plan.parameters()."
    )


class _Noted(dict[str, Any]):
    """The state of one parameter, which keeps a copy of what each key was given first."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, Any] = {}

    def __setitem__(self, key: str, value: Any) -> None:
        self.first.setdefault(key, value.detach().clone() if isinstance(value, Tensor) else value)
        super().__setitem__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]


class _OneState(dict[Any, Any]):
    """The `state` of an optimizer of one parameter; what is kept under other keys is a copy of the optimizer's own."""

    def __init__(self, noted: _Noted, others: Mapping[Any, Any]) -> None:
        super().__init__(deepcopy({key: value for key, value in others.items() if not isinstance(key, Tensor)}))
        self.noted = noted

    def __missing__(self, key: Any) -> Any:
        return dict.setdefault(self, key, self.noted if isinstance(key, Tensor) else {})

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, Tensor) and value is not self.noted:
            self.noted.update(value)
            value = self.noted
        super().__setitem__(key, value)


def _copy_of(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Optimizer, _Noted]:
    """`optimizer` over one group alone, with nothing that reaches back to the one it was copied from."""
    group = {key: value if key == "params" else _apart(value) for key, value in group.items()}
    if "weight_decay" in group:
        group["weight_decay"] = 0.0
    noted = _Noted()
    other = object.__new__(type(optimizer))
    kept = {
        name: OrderedDict() if name.endswith("_hooks") else _apart(value) for name, value in vars(optimizer).items()
    }
    other.__dict__ = {**kept, "param_groups": [group], "state": _OneState(noted, optimizer.state)}
    return other, noted


def _apart(value: Any) -> Any:
    """`value` so that a change in place does not reach the original."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, torch.Generator):
        return value.clone_state()
    return copy(value) if isinstance(value, list | dict | set) else value


def _unhooked(step: Any) -> Any:
    """The step itself: torch wraps it in one that runs hooks, some of them for every optimizer."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def _no_gradient(parameter: Tensor, sparse: bool) -> Tensor:
    if not sparse:
        return torch.zeros_like(parameter)
    ids = torch.empty(1, 0, dtype=torch.int64, device=parameter.device)
    none = parameter.detach().new_empty(0, *parameter.shape[1:])
    return torch.sparse_coo_tensor(ids, none, parameter.shape, check_invariants=False)
