"""What the processes of a sharded model tell each other: small objects, never values of tensors.

Without a sharded tensor nobody is asked: under DistributedDataParallel each process has all values, and may be alone in
calling.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from frostline.changes.state import unwrapped
from frostline.partial.sharded import is_sharded

T = TypeVar("T")


class Processes:
    """The processes over which a model is sharded; this one alone for a model that is not."""

    def __init__(self, model: nn.Module | None = None) -> None:
        tensors: list[Any] = [] if model is None else [*_tensors(model)]
        meshes = [tensor.device_mesh for tensor in tensors if is_sharded(tensor)]
        self._mesh: Any = max(meshes, key=lambda mesh: mesh.ndim, default=None)
        self._writes = True
        if isinstance(model, nn.parallel.DistributedDataParallel):
            self._writes = bool(dist.get_rank(model.process_group) == 0)

    @property
    def is_first(self) -> bool:
        """Whether this process is the first one, which writes what every process has."""
        return self._writes if self._mesh is None else not any(self._mesh.get_coordinate())

    @property
    def are_several(self) -> bool:
        """Whether the model is sharded, so that they act together."""
        return self._mesh is not None

    @property
    def number(self) -> int:
        """The number of this process among them, in the order of `gathered`."""
        if self._mesh is None:
            return 0
        number = 0
        for dim in reversed(range(self._mesh.ndim)):  # `gathered` runs through the first dimension fastest
            number = number * self._mesh.size(dim) + self._mesh.get_local_rank(dim)
        return number

    def gathered(self, value: T) -> list[T]:
        """Return the values of all processes, in the same order in each. Every process must call this."""
        values = [value]
        for dim in range(0 if self._mesh is None else self._mesh.ndim):
            group = self._mesh.get_group(dim)
            parts: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(parts, values, group=group)
            values = [each for part in parts for each in part]
        return values

    def raise_together(self, error: Exception | None) -> None:
        """Raise on every process what one of them met. Every process must call this."""
        errors = [each for each in self.gathered(error if self._mesh is None else _picklable(error)) if each]
        if error is not None:
            raise error
        if errors:
            raise errors[0]


def _picklable(error: Exception | None) -> Exception | None:
    return None if error is None else type(error)(*error.args)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*unwrapped(model).parameters(), *unwrapped(model).buffers()]
