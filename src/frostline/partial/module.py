"""A module that owns a partial tensor: the same object as before, with the same names and state-dict keys.

The module's class becomes a subclass of itself, of the same name, with a property in place of the Parameter. The two
parts are ordinary Parameters of the module, so optimizers, DDP, FSDP2, `deepcopy`, `.to()` and `functional_call` see
nothing unusual:
    _parameters["weight"]           the frozen part, requires_grad=False, under the tensor's own name
    _parameters["weight_learned"]   the part that learns
The property shows them as a PartialTensor, which never refers to memory that the module no longer uses.

Libraries detect and make ties by identity (`head.weight is embed.weight`): owners of a tied tensor show one object.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.errors import PartialTensorError
from frostline.partial import sharded, tensor_parallel
from frostline.partial.checks import check_own
from frostline.partial.model_tensors import (
    State,
    frozen_part,
    learned_name,
    memories_of,
    only_looks_up,
    parts,
    state_of,
)
from frostline.partial.optimizer_guard import adopt, frozen_of
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor import PartialTensor, is_traced, partial_tensor, plain
from frostline.partial.tensor.memory import Memory


class PartialModule(nn.Module):
    """Mixin for the class of a module that owns a partial tensor, or whose running statistics are frozen."""

    _frostline: State
    _plain_class: type[nn.Module]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Do nothing: the user's own hook has seen the plain class, and may refuse to see it twice."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return a plain module: users write `type(module)(...)` for another module of the user's own class."""
        return cls._plain_class(*args, **kwargs)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Accept a partial tensor, which ties weights; raise for a Parameter that would replace the learned part."""
        state = self._frostline
        if any(partial not in self._parameters for partial in state.partial.keys() - state.mapped.keys()):
            _put_back(self)  # `weight_norm` deletes the Parameter, then registers others
            raise _two_parts(name)
        learned = self._parameters[name] if name in map(learned_name, state.partial) else None
        if learned is not None and not state.assigning and (param is None or param.shape != learned.shape):
            raise PartialTensorError(f"{name}: it belongs to the plan. Call train_only again, or fl.merge(model).")
        if learned is not None and is_sharded(param) and not state.assigning:
            tensor_parallel.take_learned(learned, param)
        elif name not in state.partial or state.assigning:
            super().register_parameter(name, param)
        elif isinstance(param, PartialTensor):
            self._set_parts(name, param.frozen, param.learned, param.memory)
        elif (tied := sharded.parts_of_sharded(param)) is not None:
            self._set_parts(name, param, *tied)
        elif is_sharded(param):
            self._set_parts(name, *tensor_parallel.split_parts(self, name, cast(nn.Parameter, param)))
        else:
            raise PartialTensorError(
                f"{name}: a new Parameter would replace a partial tensor, and its learned part with it. "
                f"Write values with `module.{name}.data = value`, or call fl.merge(model) first."
            )

    def _set_parts(self, name: str, frozen: Tensor | None, learned: Tensor, memory: Memory) -> None:
        self._parameters[name] = cast(nn.Parameter, frozen)
        self._parameters[learned_name(name)] = cast(nn.Parameter, learned)
        self._frostline.partial[name] = memory
        memory.looked_up = memory.looked_up and only_looks_up(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PartialModule:
        for memory, frozen, learned in (memories := memories_of(self)):
            memory.sync(frozen, learned)
        before = [_storages(frozen, learned) for _, frozen, learned in memories]
        with _parameters_stay_objects(), tensor_parallel.left_out(self, fn):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for (memory, frozen, learned), storages in zip(memories_of(self), before, strict=True):
            if _storages(frozen, learned) != storages:
                memory.forget()
                self._frostline.shown.clear()  # it would keep the memory that was left
        for name, memory in self._frostline.partial.items():
            memory.indices = memory.indices.to(frozen_part(self, name).device)
        return self

    def _around_step(self) -> None:
        """Before an optimizer's step, take over what was written to the frozen parts; after it, what has learned."""
        shown = self._frostline.shown
        with plain():
            leaf = next((weight for weight in shown.values() if weight.retains_grad), None)
        if leaf is not None:
            shown.clear()
            leaf.check_is_no_leaf()
        for memory, frozen, learned in memories_of(self):
            if learned.is_cuda:
                shown.clear()  # a CUDA graph captures only what was made in its own stream
            if memory.seems_changed(frozen, learned):
                memory.sync(frozen, learned)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        state = self._frostline
        for name, memory in state.partial.items():  # then the frozen part is the full tensor, without a copy
            frozen, learned = parts(self, name)
            if not is_sharded(frozen):
                memory.sync(frozen, learned)
            elif not frozen.is_meta:
                sharded.scatter_(memory.indices, frozen, sharded.full_tensor(learned))
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, table in state.mapped.items():
            learns = state.partial.get(name)
            full = table.tensor if learns is None else learns.indices.merged(*parts(self, name)).detach()
            destination[prefix + name] = full
        for name in state.partial:
            destination.pop(prefix + learned_name(name), None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        _, missing, _, errors = args
        state = self._frostline
        given = dict(state_dict)  # a copy: the caller's must not change
        from_mapped = {name: given.pop(prefix + name, None) for name in state.mapped}
        for name, full in from_mapped.items():
            problem = state.mapped[name].differs_from(full, state.partial.get(name))
            if problem == "missing":
                missing.append(prefix + name)
            elif problem:
                errors.append(f"{prefix}{name}: {problem}")
                from_mapped[name] = None
        # The checkpoint holds full tensors, which torch's own loading copies into the frozen parts, where the learned
        # values are written first: what differs afterwards has been loaded. So the user's hooks run, and a key that is
        # missing or does not fit is reported once, and leaves the learned part as it is. (torch.distributed.checkpoint
        # reads into the memory of `state_dict()`: the loaded values are there already, and must not be overwritten.)
        for name, memory in state.partial.items():
            frozen, learned = parts(self, name)
            key = prefix + learned_name(name)
            if given.get(key, learned) is not learned:  # torch's set_model_state_dict passes the learned part itself
                fix = f"Load {prefix}{name}, or use save_learned."
                errors.append(f"{key}: does not say which {memory.indices.kind} it holds. {fix}")
            given[key] = learned.detach()
            values = sharded.full_tensor(learned)  # by every process, even one that does not need it
            if not (name in from_mapped or learned.is_meta or sharded.same_memory(given.get(prefix + name), frozen)):
                sharded.scatter_(memory.indices, frozen, values)
        state.assigning = True
        try:
            with _parameters_stay_objects():
                super()._load_from_state_dict(given, prefix, local_metadata, *args)
        finally:
            state.assigning = False
        for name, memory in state.partial.items():
            frozen, learned = parts(self, name)
            full = from_mapped.get(name, frozen)
            if learned.is_meta and not frozen.is_meta:
                learned = sharded.parameter_like(learned, sharded.gather(memory.indices, frozen))
                self._parameters[learned_name(name)] = learned
            elif full is not None:
                sharded.update(memory.indices, learned, full)
            if not is_sharded(frozen):
                memory.note(frozen, learned)

    def train(self, mode: bool = True) -> PartialModule:
        """Set training mode; a module whose running statistics are frozen stays in eval mode."""
        self._frostline.training = mode
        super().train(mode and not self._frostline.frozen_stats)
        return self

    def set_deepspeed_parallelism(self, *args: Any, **kwargs: Any) -> Any:
        """Raise under ZeRO-3: DeepSpeed asks every module that has this, before it splits the first Parameter."""
        engine = sys._getframe(1).f_locals.get("self")
        if self._frostline.partial and getattr(engine, "zero_optimization_stage", int)() > 2:
            raise PartialTensorError(
                "model: DeepSpeed's ZeRO-3 cannot split a partial tensor. Use its stage 1 or 2, or torch's fully_shard."
            )
        own = getattr(super(), "set_deepspeed_parallelism", None)
        return None if own is None else own(*args, **kwargs)

    def __prepare_scriptable__(self) -> nn.Module:
        """Raise: `torch.jit.script` asks every module that has this for another one to compile."""
        raise PartialTensorError("torch.jit.script cannot compile a partial tensor. Call fl.merge(model) first.")

    def __delattr__(self, name: str) -> None:
        """Raise for a partial tensor: whoever removes it puts something of its own there, as `spectral_norm` does."""
        if any(name in (partial, learned_name(partial)) for partial in self._frostline.partial):
            raise _two_parts(name)
        super().__delattr__(name)

    def _replicate_for_data_parallel(self) -> nn.Module:
        """Return a replica for DataParallel, which sets copies of both parts on it."""
        replica = object.__new__(type(self))
        own = {"_parameters": {}, "_buffers": self._buffers.copy(), "_modules": self._modules.copy()}
        replica.__dict__ = self.__dict__ | own | {"_is_replica": True}
        return replica

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle how the class is made: it was made on the fly, and no import would find it."""
        cls: Any = type(self)
        _, _, *state = cast(tuple[Any, ...], super().__reduce_ex__(2))
        return new_partial_module, (cls._plain_class, cls._partial_names), *state


def new_partial_module(plain: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Return an empty module in which the tensors `names` are partial, for a pickle to fill."""
    return object.__new__(partial_class(plain, names))


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that `module` had before any plan."""
    return getattr(type(module), "_plain_class", type(module))


_classes: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def partial_class(plain: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of `plain` in which the tensors `names` are partial.

    Always the same class, because torch.compile compiles again for another.
    """
    if (plain, names) not in _classes:
        _classes[plain, names] = _make_partial_class(plain, names)
    return _classes[plain, names]


def _make_partial_class(plain: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    namespace: dict[str, Any] = {
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        "_plain_class": plain,
        "_partial_names": names,
        **{name: _partial_tensor(name) for name in names},
    }
    if issubclass(plain, nn.RNNBase):
        namespace |= {"_flat_weights": property(_flat_weights, _ignore), "flatten_parameters": _ignore}
        if plain.__setattr__ is nn.RNNBase.__setattr__:  # it would write to `_flat_weights`
            namespace["__setattr__"] = nn.Module.__setattr__
    return type(plain.__name__, (PartialModule, plain), namespace)


def _partial_tensor(name: str) -> property:
    def get(module: nn.Module) -> Tensor:
        # `__dict__` raises KeyError. After an AttributeError `nn.Module.__getattr__` would return the frozen part.
        state: State = module.__dict__["_frostline"]
        memory = state.partial.get(name)
        frozen = frozen_part(module, name)
        if memory is None:  # a mapped table of which nothing learns
            return frozen if torch.compiler.is_compiling() else state.mapped[name].shown()
        learned = parts(module, name)[1]
        if memory.mesh is not None or is_sharded(frozen):
            return tensor_parallel.shown(module, name, memory, frozen, learned)
        if not (memory.indices.read_only or isinstance(frozen, nn.Parameter)) and isinstance(learned, nn.Parameter):
            if not frozen.requires_grad:
                raise PartialTensorError(
                    f"{name}: functional_call was given a tensor without gradient, which may be the whole or the "
                    "frozen part alone. Pass both parts as they are in named_parameters(), or both detached; or call "
                    "fl.merge(model) first, and pass the whole tensor."
                )
            return frozen  # `functional_call` was given the whole tensor under its plain name
        if not torch.compiler.is_compiling():
            sharded.check_agreement(name, memory.indices, frozen, learned)
        if _must_stand_in(memory, frozen, learned):
            if not (torch.compiler.is_compiling() or memory.knows(frozen, learned)):
                check_own(name, memory.indices, learned)
            return PartialTensor.stand_in(frozen, learned, memory)
        if memory.is_new():
            adopt(frozen, learned, module)
        if memory.seems_changed(frozen, learned):
            memory.sync(frozen, learned)
        weight = state.shown[name] = partial_tensor(memory, frozen, learned)
        return weight

    def set(module: nn.Module, value: object) -> None:
        # `nn.Module.__setattr__` handles an assignment as long as the name is in `_parameters`. So a property is set
        # only by code that has deleted the Parameter first: FSDP1 and `weight_norm` put a plain tensor there.
        if "_is_replica" in module.__dict__:
            module.__dict__[name] = value
            return
        _put_back(module)
        raise _two_parts(name)

    return property(get, set)


def _two_parts(name: str) -> PartialTensorError:
    return PartialTensorError(
        f"{name}: a partial tensor has two parts, and FullyShardedDataParallel, weight_norm or the like would set one. "
        "Use torch.distributed.fsdp.fully_shard; or call fl.merge(model), change the weight, and plan again."
    )


def _put_back(module: nn.Module) -> None:
    """Give the module its frozen parts again, and take from it what was registered in their place."""
    held, state = module._parameters, cast(State, state_of(module))
    for name in state.partial.keys() - state.mapped.keys() - held.keys():
        held[name] = cast(nn.Parameter, frozen_of(cast(nn.Parameter, held[learned_name(name)])))
    known = [*state.requires_grad, *map(learned_name, state.partial)]  # in the order in which they were registered
    restored = {key: held[key] for key in known if key in held}
    held.clear()
    held.update(restored)


def _flat_weights(module: Any) -> list[Tensor | None]:
    """Return the weights of a recurrent module as they are now.

    The list that the module keeps itself would hold the frozen parts for ever. Partial weights are merged here, as the
    recurrence would merge them anyway: torch.compile does not trace recurrent modules, but does trace
    `__torch_function__` when they call it, and the gradient would be lost.
    """
    weights = [getattr(module, name, None) for name in module._flat_weights_names]
    return [weight.merged() if isinstance(weight, PartialTensor) else weight for weight in weights]


def _ignore(module: nn.Module, *args: Any) -> None:
    """Do nothing: a recurrent module sets and flattens its own list of weights; `_flat_weights` makes ours."""


def _storages(frozen: Tensor, learned: Tensor) -> list[tuple[int, torch.dtype]]:
    return [(part.untyped_storage()._cdata, part.dtype) for part in (frozen, learned)]


def _must_stand_in(memory: Memory, frozen: Tensor, learned: Tensor) -> bool:
    """Return whether the parts share no memory that may be written; see PartialTensor."""
    if is_traced() or memory.indices.read_only or sharded.was_sharded(memory.indices):
        return True
    own = isinstance(frozen, nn.Parameter) and isinstance(learned, nn.Parameter)
    return not own or not (memory.knows(frozen, learned) or memory.is_new())


@contextlib.contextmanager
def _parameters_stay_objects() -> Iterator[None]:
    """Let torch change the data of Parameters, not swap them with new ones: others refer to the parts weakly."""
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(False)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
