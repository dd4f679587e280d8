"""The tensors of a model: the parts that its modules hold, and every tensor once, with all its names and owners.

Tied tensors are one tensor; the two parts of a partial tensor are one tensor; and a table in a mapped file is included,
although it is not a Parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.partial.sharded import full_tensor, is_sharded, scatter_
from frostline.partial.tensor import PartialTensor, view
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.memory import Memory

_CHUNK = 1 << 16  # rows of a checkpoint that are compared with a mapped file at a time


@dataclass(frozen=True, eq=False)
class MappedTable:
    """A tensor in a mapped file, and how to map it again: copies and pickles refer to the file, not to its values."""

    tensor: Tensor
    reopen: Callable[..., MappedTable]
    arguments: tuple[Any, ...]

    def __deepcopy__(self, memo: dict[int, object]) -> MappedTable:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reopen, self.arguments

    def shown(self) -> Tensor:
        """Return the table as code sees it of which nothing learns: writing to it raises."""
        nothing = Memory(LearnedIndices(torch.empty(0, dtype=torch.int64), (0,), None, read_only=True), looked_up=True)
        return view(PartialTensor.stand_in(self.tensor, self.tensor.new_empty(0), nothing), self.tensor.detach())

    def differs_from(self, full: Tensor | None, learns: Memory | None) -> str:
        """Return why `full` cannot be loaded into this table; empty if only rows differ that learn."""
        if full is None:
            return "missing"
        if full.shape != self.tensor.shape:
            return f"shape {tuple(full.shape)} in the checkpoint, {tuple(self.tensor.shape)} in the mapped file"
        for start in range(0, len(full), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            same = (full[chunk] == self.tensor[chunk].to(full.device)).all(1)
            if learns is not None and learns.indices.row_to_slot is not None:
                same |= (learns.indices.row_to_slot[chunk] >= 0).to(same.device)
            if not same.all():
                return "its frozen rows differ from the mapped file, which is never written to"
        return ""


@dataclass
class State:
    """What frostline keeps on a module that owns parameters or running statistics.

    Attributes:
        partial: Name of each partial tensor -> the memory of its parts, with the indices that learn.
        shown: Name -> its PartialTensor as it was last used: people may hold only its views.
        mapped: Name of each tensor in a mapped file -> that table, which is not among the parameters.
        requires_grad: `requires_grad` of each parameter before the first plan: what `merge` restores.
        frozen_by_plan: Names of the tensors that the last plan froze as a whole.
        frozen_stats: Whether running statistics are frozen, by keeping the module in eval mode.
        training: The mode last asked for while they are frozen.
        beside: Whether the module holds rows that stand beside the quantized weight of the module it is in.
        tokens: Name of each table whose rows `add_tokens` chose -> text of each token -> its row.
        assigning: Whether a checkpoint is being loaded, which may replace the Parameters of both parts.
    """

    partial: dict[str, Memory] = field(default_factory=dict)
    shown: dict[str, PartialTensor] = field(default_factory=dict, repr=False)
    mapped: dict[str, MappedTable] = field(default_factory=dict)
    requires_grad: dict[str, bool] = field(default_factory=dict)
    frozen_by_plan: frozenset[str] = frozenset()
    frozen_stats: bool = False
    training: bool = True
    beside: bool = False
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    assigning: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "shown": {}}


def state_of(module: nn.Module) -> State | None:
    """Return what frostline keeps on `module`; None if no plan was made for it."""
    return module.__dict__.get("_frostline")


def learned_name(name: str) -> str:
    """Return the name of the learned part of the tensor `name`."""
    return f"{name}_learned"


def memories_of(module: nn.Module) -> list[tuple[Memory, Tensor, nn.Parameter]]:
    """Return the memory of each partial tensor of `module`, with its parts; but for those that FSDP2 has sharded."""
    state = state_of(module)
    found = [] if state is None else [(memory, *parts(module, name)) for name, memory in state.partial.items()]
    return [each for each in found if not is_sharded(each[1])]


def parts(module: nn.Module, name: str) -> tuple[Tensor, nn.Parameter]:
    """Return the frozen and the learned part of the partial tensor `name` of `module`."""
    return frozen_part(module, name), cast(nn.Parameter, _stored(module)[learned_name(name)])


def frozen_part(module: nn.Module, name: str) -> Tensor:
    """Return the frozen part of the tensor `name` of `module`: a Parameter, or the tensor of a mapped file."""
    mapped = module.__dict__["_frostline"].mapped
    return cast(Tensor, mapped[name].tensor if name in mapped else _stored(module)[name])


def _stored(module: nn.Module) -> dict[str, Any]:
    """Return the dictionary that holds the parts: in DataParallel's replicas they are no Parameters."""
    return module.__dict__ if "_is_replica" in module.__dict__ else module._parameters


def only_looks_up(module: nn.Module) -> bool:
    """Return whether `module` uses its weight only to look rows up."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag)


@dataclass
class ModelTensor:
    """One tensor of a model.

    Attributes:
        tensor: The Parameter, or the frozen part if it is partial, or the tensor of a mapped file.
        mapped: Whether it is the tensor of a mapped file.
        names: All its names in the model, the first one first.
        owners: The modules that have it, each with its name there.
        learned: Its learned part, if it is partial now.
        indices: Which of its elements learn, if it is partial now.
        stands_for: Names of the quantized weights that it stands beside: in a float model its rows are theirs.
    """

    tensor: Tensor
    mapped: bool = False
    names: list[str] = field(default_factory=list)
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    learned: nn.Parameter | None = None
    memory: Memory | None = None
    stands_for: list[str] = field(default_factory=list)

    @property
    def indices(self) -> LearnedIndices | None:
        """What learns of it, if rows or entries do."""
        return None if self.memory is None else self.memory.indices

    @property
    def name(self) -> str:
        """Its first name in the model."""
        return self.names[0]

    def sync(self) -> None:
        """Make both parts hold the same values, if it is partial. If it is sharded, every process must call this."""
        if self.memory is None or self.learned is None:
            return
        if is_sharded(self.tensor):
            scatter_(self.memory.indices, self.tensor, full_tensor(self.learned))
        else:
            self.memory.sync(self.tensor, self.learned)


def find_tensors(model: nn.Module) -> list[ModelTensor]:
    """Return every parameter of `model` and every mapped table, in the model's order."""
    found: dict[int, ModelTensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        state = state_of(module)
        partial = {} if state is None else state.partial
        hidden = {learned_name(name) for name in partial}
        mapped = {} if state is None else {name: table.tensor for name, table in state.mapped.items()}
        for name, parameter in [*module._parameters.items(), *mapped.items()]:
            if parameter is None or name in hidden:
                continue
            model_tensor = found.setdefault(id(parameter), ModelTensor(parameter, name in mapped))
            model_tensor.names.append(f"{prefix}.{name}" if prefix else name)
            if (module, name) not in model_tensor.owners:
                model_tensor.owners.append((module, name))
            if state is not None and state.beside:
                model_tensor.stands_for.append(f"{prefix.rpartition('.')[0]}.{name}")
            if name in partial:
                model_tensor.learned, model_tensor.memory = parts(module, name)[1], partial[name]
    return list(found.values())
