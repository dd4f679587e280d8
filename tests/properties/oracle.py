"""The oracle, slow and obvious: the plain module, all of it with gradients; what learns is taken out by indexing.

    restored    the optimizer gets the whole tensors; gradients of frozen entries are zeroed before the step, and frozen
                entries are put back after it. Right for optimizers that treat each entry by itself.
    apart       the optimizer gets the learned entries as tensors of their own, which are written into the whole ones
                before each forward. Right for every optimizer.

It knows nothing of frostline.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """What learns of one tensor: `whole[index]`, in `dtype`."""

    name: str
    index: Any
    dtype: torch.dtype


class Dense:
    """A plain module of which only `parts` are to learn."""

    def __init__(self, module: nn.Module, parts: list[Part], restored: bool) -> None:
        self.module, self.parts, self.restored = module, parts, restored
        self.whole = dict(module.requires_grad_().named_parameters())
        self.before = {name: whole.detach().clone() for name, whole in self.whole.items()}
        self.parameters = (
            [self.whole[part.name] for part in parts]
            if restored
            else [nn.Parameter(self.whole[part.name].detach()[part.index].to(part.dtype, copy=True)) for part in parts]
        )
        self.given = self.parameters
        self.average = copy.deepcopy(module)

    def weights(self) -> list[Tensor]:
        """The tensors as they are now, each as a whole."""
        return list(self.whole.values())

    @torch.no_grad()
    def rewrite(self, write: Callable[[str, Tensor], None]) -> None:
        """Let `write` change each whole tensor, frozen entries too; what learns goes on from the new values."""
        self.after_step()
        for name, whole in self.whole.items():
            write(name, whole)
            self.before[name] = whole.clone()
        if not self.restored:
            for part, parameter in zip(self.parts, self.parameters, strict=True):
                parameter.copy_(self.whole[part.name][part.index])

    @torch.no_grad()
    def rewrite_learned(self, factor: float) -> None:
        """Multiply what learns, and nothing else."""
        for part, parameter in zip(self.parts, self.parameters, strict=True):
            if self.restored:
                parameter[part.index] = parameter[part.index] * factor
            else:
                parameter.mul_(factor)
        self.after_step()

    def call(self, x: Tensor) -> Tensor:
        return self.module(x)

    def slopes(self, loss: Tensor) -> list[Tensor]:
        """Gradients of `loss` with a graph, of the learned entries."""
        wholes = [self.whole[part.name] for part in self.parts]
        slopes = torch.autograd.grad(loss, wholes, create_graph=True, materialize_grads=True)
        return [slope[part.index] for slope, part in zip(slopes, self.parts, strict=True)]

    def before_forward(self) -> None:
        for whole in self.whole.values():
            whole.grad = None
        if not self.restored:
            self._write()

    def collect(self) -> list[Tensor]:
        """The gradients of the learned entries."""
        return [self.whole[part.name].grad[part.index].to(part.dtype) for part in self._dense_parts()]

    def rows_named(self, part: Part) -> Tensor | None:
        """Which learned rows a sparse gradient of the whole tensor names, as a mask; None if it is dense."""
        grad = self.whole[part.name].grad
        if not grad.is_sparse:
            return None
        named = torch.zeros(len(grad), dtype=torch.bool, device=grad.device)
        named[grad._indices()[0]] = True
        return named[part.index[:1] if isinstance(part.index, tuple) else part.index]

    def _dense_parts(self) -> list[Part]:
        for part in self.parts:
            if self.whole[part.name].grad.is_sparse:
                self.whole[part.name].grad = self.whole[part.name].grad.to_dense()
        return self.parts

    def give(self, gradients: list[Tensor]) -> None:
        """Set these gradients for the learned entries, and zeros elsewhere."""
        for parameter, part, gradient in zip(self.parameters, self.parts, gradients, strict=True):
            if not self.restored:
                parameter.grad = gradient.clone()
            elif gradient.is_sparse:
                rows = torch.arange(len(parameter), device=parameter.device)[part.index]
                ids = rows[gradient._indices()]
                parameter.grad = torch.sparse_coo_tensor(
                    ids, gradient._values().clone(), parameter.shape, check_invariants=True
                )
            else:
                parameter.grad = torch.zeros_like(parameter)
                parameter.grad[part.index] = gradient

    @torch.no_grad()
    def after_step(self) -> None:
        if not self.restored:
            self._write()
            return
        for name, whole in self.whole.items():
            index = next((part.index for part in self.parts if part.name == name), None)
            kept = self.before[name].clone()
            if index is not None:
                kept[index] = whole[index]
            whole.copy_(kept)

    def learned(self) -> list[Tensor]:
        """The learned entries as they are now."""
        if not self.restored:
            return [parameter.detach() for parameter in self.parameters]
        return [self.whole[part.name].detach()[part.index] for part in self.parts]

    @torch.no_grad()
    def continue_from(self, learned: list[Tensor]) -> None:
        """Continue from these learned values, so that rounding differences already compared do not add up."""
        for part, values in zip(self.parts, learned, strict=True):
            self.whole[part.name][part.index] = values.detach()

    @torch.no_grad()
    def _write(self) -> None:
        for part, parameter in zip(self.parts, self.parameters, strict=True):
            self.whole[part.name][part.index] = parameter.to(self.whole[part.name].dtype)
