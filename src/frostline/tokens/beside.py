"""Rows of new tokens beside a quantized table, whose storage keeps every bit.

Letters used for shapes in this file:
    V  rows of the storage        D  width of a row
    N  rows of the model (N >= V) K  rows that stand beside

A quantized table cannot grow, and no row of it can learn. So its module gets a small float table of K rows,
`new_tokens`, and a forward that uses the library's own for the storage: looked-up rows are dequantized as ever, and the
logits of old tokens keep their bits. Beside stand the rows from V to N, in order, then those below V that learn.

On the module: `stored_rows`, V; `new_tokens`, nn.Embedding (K, D); `new_token_ids` (K,), the id of each row that stands
beside; `new_token_slots` (N,), where the row of an id stands beside, -1 if it is in the storage.

No quantization library is imported: a module is known by what its forward returns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frostline.errors import PartialTensorError
from frostline.partial.model_tensors import State, state_of
from frostline.partial.quantized import count_rows, is_wrapper
from frostline.partial.rollback import set_class

_BLOCK = 1024  # rows or columns that are dequantized at a time


def _embed(self: Any, ids: Tensor) -> Tensor:
    """Return the rows of `ids` (*), shape (*, D): the forward of an embedding with rows beside it."""
    slots = self.new_token_slots[ids]
    stored: Tensor = self._stored_class.forward(self, ids.masked_fill(slots >= 0, 0))
    beside = self.new_tokens(slots.clamp(min=0)).to(stored.dtype)
    scale = getattr(self, "embed_scale", None)  # Gemma's, which the stored rows have been multiplied by
    beside = beside if scale is None else beside * torch.as_tensor(scale).to(beside)
    return torch.where((slots >= 0).unsqueeze(-1), beside, stored)


def _logits(self: Any, x: Tensor) -> Tensor:
    """Return the logits of `x` (*, D), shape (*, N): the forward of a head with rows beside it."""
    stored: Tensor = self._stored_class.forward(self, x)
    beside = F.linear(x.to(self.new_tokens.weight.dtype), self.new_tokens.weight).to(stored.dtype)
    above = len(self.new_token_slots) - self.stored_rows
    logits = torch.cat([stored, beside[..., :above]], dim=-1)
    if above == len(self.new_token_ids):
        return logits
    return logits.index_copy(-1, self.new_token_ids[above:], beside[..., above:])


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    """Pickle how the class is made: it was made on the fly, and no import would find it."""
    _, _, *state = cast(tuple[Any, ...], nn.Module.__reduce_ex__(self, 2))
    return new_module_with_rows, (self._stored_class,), *state


def has_rows_beside(module: Any) -> bool:
    """Return whether rows stand beside the quantized `module`."""
    return hasattr(module, "stored_rows")


def check_usable(module: Any, name: str) -> None:
    """Raise if rows cannot stand beside the quantized `module`."""
    if getattr(module, "bias", None) is not None:
        raise PartialTensorError(f"model: {name} is quantized and has a bias, which cannot grow. Exclude it from that.")
    if has_rows_beside(module) and (state := state_of(module.new_tokens)) is not None and state.partial:
        raise PartialTensorError(f"model: {name}.new_tokens.weight learns in part. Call fl.merge(model) first.")


@torch.no_grad()
def dequantized(module: Any, name: str, dtype: torch.dtype | None) -> Tensor:
    """Return the rows as the module uses them, shape (N, D): a float copy of the whole table; a head's in `dtype`."""
    try:
        if is_wrapper(module.weight) and not has_rows_beside(module):
            return cast(Tensor, module.weight.dequantize()).detach()
        device = module.weight.device
        if isinstance(module, nn.Embedding):
            found = torch.cat([module(ids.to(device)) for ids in torch.arange(count_rows(module)).split(_BLOCK)])
            scale = getattr(module, "embed_scale", None)
            return found if scale is None else found / torch.as_tensor(scale).to(found)
        # A product with the identity: each column of the weight times one, and the others times zero.
        with torch.enable_grad():  # as in training: without, bitsandbytes changes to a layout for inference, and rounds
            unit = torch.eye(module.in_features, dtype=dtype, requires_grad=True)
            return torch.cat([module(block.to(device)).detach() for block in unit.split(_BLOCK)]).T.contiguous()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise PartialTensorError(
            f"model: {name} is quantized in a form that cannot be read ({why}). Exclude it from quantization."
        ) from None


def kept_beside(module: Any) -> list[int]:
    """Return the ids of the rows that stand beside `module` although its storage has such rows."""
    return (
        [i for i in module.new_token_ids.tolist() if i < module.stored_rows] if hasattr(module, "stored_rows") else []
    )


def put_beside(
    module: Any, size: int, full: Tensor, mean: Tensor, values: Mapping[int, Tensor], learning: Collection[int]
) -> None:
    """Give `module` `size` rows: beside it stand those that its storage lacks, and those that learn.

    Args:
        module: A quantized embedding or head; if it has rows beside it, they go on from their values.
        size: How many rows it will have, N.
        full: Its rows as they are, (N before, D).
        mean: Their mean, (D,), for rows without a token.
        values: id -> row (D,) of those that start anew.
        learning: The ids that will learn.
    """
    stored = getattr(module, "stored_rows", len(full))
    below = sorted({i for i in (*learning, *kept_beside(module)) if i < stored})
    ids = [*range(stored, size), *below]
    new_rows = torch.stack([values.get(i, full[i] if i < len(full) else mean).to(full.dtype) for i in ids])
    table = nn.Embedding(len(ids), full.shape[1], _weight=new_rows, _freeze=True)
    slots = torch.full((size,), -1)
    slots[ids] = torch.arange(len(ids))
    set_class(module, _class_with_rows(getattr(module, "_stored_class", type(module))))
    device = full.device
    module.stored_rows, module.new_tokens = stored, table
    module.register_buffer("new_token_ids", torch.tensor(ids, device=device), persistent=False)
    module.register_buffer("new_token_slots", slots.to(device), persistent=False)


def share_beside(module: Any, other: Any) -> None:
    """Give `module`, which is tied to `other`, the very rows that stand beside that one."""
    set_class(module, _class_with_rows(getattr(module, "_stored_class", type(module))))
    module.stored_rows, module.new_tokens = other.stored_rows, other.new_tokens
    for name in ("new_token_ids", "new_token_slots"):
        module.register_buffer(name, getattr(other, name), persistent=False)


@contextlib.contextmanager
def beside_restored_on_error(modules: Collection[nn.Module]) -> Iterator[None]:
    """Run the block; if it raises, take away what it put beside the modules."""
    before = [
        (module, type(module), dict(module._modules), set(module._non_persistent_buffers_set)) for module in modules
    ]
    try:
        yield
    except BaseException:
        for module, cls, children, names in before:
            set_class(module, cls)
            module._modules.clear()
            module._modules.update(children)
            module._non_persistent_buffers_set.intersection_update(names)
        raise


def new_module_with_rows(stored_class: type[nn.Module]) -> nn.Module:
    """Return an empty quantized module with rows beside it, for a pickle to fill."""
    return object.__new__(_class_with_rows(stored_class))


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _class_with_rows(stored_class: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a quantized class that has rows beside it: always the same one."""
    if stored_class not in _classes:
        names = {
            "__module__": stored_class.__module__,
            "__qualname__": stored_class.__qualname__,
            "__reduce_ex__": _reduce,
            "_stored_class": stored_class,
            "forward": _embed if issubclass(stored_class, nn.Embedding) else _logits,
        }
        _classes[stored_class] = type(stored_class.__name__, (stored_class,), names)  # no mixin: it may not fit
    return _classes[stored_class]


def note_tokens(table: nn.Module, slots: Mapping[str, int]) -> None:
    """Note which token each row of a small table is, for `save_learned`; and that the table stands beside another."""
    state = cast(State, state_of(table))
    state.tokens["weight"], state.beside = dict(slots), True
