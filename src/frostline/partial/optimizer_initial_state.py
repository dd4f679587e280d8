"""The initial state that an optimizer gives a parameter, found by running a copy of the optimizer.

No optimizer declares its initial state: the sums of Adagrad start at `initial_accumulator_value`, the step sizes of
Rprop at `lr`, schedule-free optimizers keep the values themselves. So a copy takes one step with a gradient of zero on
a stand-in for the parameter, and each value is recorded when it is first put into the state.
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


def initial_state(optimizer: Optimizer, group: Mapping[str, Any], values: Tensor) -> dict[str, Any]:
    """Return the state that `optimizer` makes for a parameter that it has never seen.

    Args:
        optimizer: Any optimizer. Its state, its groups and the random generators are not changed; no hook runs.
        group: The parameter group that the parameter would be in. Its weight decay is taken as 0, so that momentum
            starts at 0 too.
        values: The values of the parameter, which are not changed.

    Returns:
        State key -> the first value that the optimizer puts there: a tensor, a number, or anything else.

    Raises:
        StaleOptimizerError: The optimizer does not accept a parameter of this shape and dtype.

    Cost: one step of the optimizer on a copy of `values`.
    """
    errors = []
    for sparse in (False, True):  # some optimizers take dense gradients only, some sparse ones only
        parameter = nn.Parameter(values.detach().clone())
        parameter.grad = _zero_gradient(parameter, sparse)
        other, state = _copy_of(optimizer, {**group, "params": [parameter]})
        try:
            with torch.random.fork_rng([values.device] if values.is_cuda else []):
                _unhooked(type(optimizer).step)(other)
            return state.first
        except Exception as error:
            errors.append(" ".join(f"{type(error).__name__}: {error}".split())[:200])
    raise StaleOptimizerError(
        f"optimizer: {type(optimizer).__name__} does not take what learns now, {values.dtype} of shape "
        f"{tuple(values.shape)} ({errors[0]}). Make a new optimizer from plan.parameters()."
    )


class _RecordingState(dict[str, Any]):
    """The state of one parameter, which keeps a copy of the first value of each key."""

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


class _OptimizerState(dict[Any, Any]):
    """The `state` of an optimizer with one parameter; values under keys that are not parameters are deep copies."""

    def __init__(self, recording: _RecordingState, original: Mapping[Any, Any]) -> None:
        super().__init__(deepcopy({key: value for key, value in original.items() if not isinstance(key, Tensor)}))
        self.recording = recording

    def __missing__(self, key: Any) -> Any:
        return dict.setdefault(self, key, self.recording if isinstance(key, Tensor) else {})

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, Tensor) and value is not self.recording:
            self.recording.update(value)
            value = self.recording
        super().__setitem__(key, value)


def _copy_of(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Optimizer, _RecordingState]:
    """Return a copy of `optimizer` over one group that shares nothing with it that a step changes."""
    group = {key: value if key == "params" else _copied(value) for key, value in group.items()}
    if "weight_decay" in group:
        group["weight_decay"] = 0.0
    recording = _RecordingState()
    other = object.__new__(type(optimizer))
    attributes = {
        name: OrderedDict() if name.endswith("_hooks") else _copied(value) for name, value in vars(optimizer).items()
    }
    other.__dict__ = {**attributes, "param_groups": [group], "state": _OptimizerState(recording, optimizer.state)}
    return other, recording


def _copied(value: Any) -> Any:
    """Return `value`, copied if a step might change it in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, torch.Generator):
        return value.clone_state()
    return copy(value) if isinstance(value, list | dict | set) else value


def _unhooked(step: Any) -> Any:
    """Return the step without the wrapper of torch that runs hooks, some of which are registered for all optimizers."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def _zero_gradient(parameter: Tensor, sparse: bool) -> Tensor:
    if not sparse:
        return torch.zeros_like(parameter)
    ids = torch.empty(1, 0, dtype=torch.int64, device=parameter.device)
    no_values = parameter.detach().new_empty(0, *parameter.shape[1:])
    return torch.sparse_coo_tensor(ids, no_values, parameter.shape, check_invariants=False)
