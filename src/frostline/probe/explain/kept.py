"""Copies of what a watched run may change, taken before it does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frostline.probe.restore.bits import is_freed, local, same, storage_address

_NO_BUFFER = torch.empty(0)


class KeptValues:
    """The values of tensors before the first step that may move them.

    Args:
        light: Keep none.
    """

    def __init__(self, light: bool) -> None:
        self.light = light
        self._values: dict[int, Tensor] = {}
        self._addresses: dict[int, int] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._values

    def keep(self, index: int, tensor: Tensor) -> None:
        """Copy a tensor, unless that was done before."""
        if not self.light and index not in self._values and not is_freed(tensor):
            self._values[index] = local(tensor).clone()
            self._addresses[storage_address(tensor)] = index

    def differ(self, index: int, tensor: Tensor) -> bool:
        """Return whether a tensor is known to have other bits now."""
        return index in self._values and not is_freed(tensor) and not same(self._values[index], tensor)

    def at(self, tensor: Tensor) -> int | None:
        """Return the index of the tensor that lies in the memory of this one, as far as it was copied."""
        return self._addresses.get(storage_address(tensor))

    def clear(self) -> None:
        """Forget the values."""
        self._values.clear()


class KeptBuffers:
    """The buffers of modules before they ran."""

    def __init__(self) -> None:
        self._modules: dict[int, nn.Module] = {}
        self._buffers: dict[tuple[int, str], Tensor] = {}

    def keep(self, module: nn.Module) -> None:
        """Copy the buffers that a module owns."""
        self._modules[id(module)] = module
        for name, buffer in module._buffers.items():
            if buffer is not None and not nn.parameter.is_lazy(buffer):
                self._buffers[id(module), name] = local(buffer).clone()

    def moving(self, model: nn.Module) -> list[str]:
        """Return the names of the buffers of a model that are not as they were."""
        return [
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()
            if id(module) in self._modules
            for name, buffer in module._buffers.items()
            if buffer is not None and not same(self._buffers.get((id(module), name), _NO_BUFFER), buffer)
        ]
