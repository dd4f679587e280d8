"""A module of which a tensor learns in part: same object, same name, same keys.

The module's class becomes a subclass of itself, of the same name, with a property where the Parameter was. The two
parts are ordinary Parameters of the module, so optimizers, DDP, FSDP2, `deepcopy`, `.to()` and `functional_call` see
nothing unusual:
    _parameters["weight"]           the frozen part, requires_grad=False, under the tensor's own name
    _parameters["weight_learned"]   the part that learns
The property builds the PartialTensor from them at each use, so it can never hold on to stale storage.

Tied weights look tied, and can be tied again, although a partial tensor is made at each use.

Libraries tell a tie by `head.weight is embed.weight`, and tie by `head.weight = embed.weight`. So while anything holds
the partial tensor of two parts, it is handed out again; and where FSDP2 is given the raw frozen part instead, the part
that learns with it is remembered.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from frostline.errors import PartialTensorError
from frostline.partial import sharded
from frostline.partial.indices import Layout
from frostline.partial.sharded import check_agreement, is_sharded, shared_over
from frostline.partial.tensor import PartialTensor

_CHECKED = 1 << 16  # rows of a checkpoint compared with a mapped file at a time


@dataclass(frozen=True, eq=False)
class MappedTable:
    """A tensor in a mapped file, and how to map it again: copies and pickles share the file, not the numbers."""

    tensor: Tensor
    reopen: Callable[..., MappedTable]
    arguments: tuple[Any, ...]

    def __deepcopy__(self, memo: dict[int, object]) -> MappedTable:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reopen, self.arguments


@dataclass
class State:
    """What frostline keeps on a module that owns parameters or running statistics.

    Attributes:
        layouts: Name of each partial tensor -> its layout.
        mapped: Name of each tensor that stays in a file -> the file's; it is not among the parameters.
        requires_grad: `requires_grad` of each parameter before the first plan: what `merge` restores.
        held: Whether running statistics are held, by keeping the module in eval mode.
        training: The mode last asked for while they are held.
        assigning: Whether a checkpoint is being loaded, which may replace the Parameters of both parts.
    """

    layouts: dict[str, Layout] = field(default_factory=dict)
    mapped: dict[str, MappedTable] = field(default_factory=dict)
    requires_grad: dict[str, bool] = field(default_factory=dict)
    held: bool = False
    training: bool = True
    assigning: bool = False


def state_of(module: nn.Module) -> State | None:
    """What frostline keeps on `module`; None where no plan reached it."""
    return module.__dict__.get("_frostline")


def learned_name(name: str) -> str:
    """The name of the learned part of the tensor `name`."""
    return f"{name}_learned"


class PartialModule(nn.Module):
    """Mixed into the class of a module that owns a partial tensor, or whose running statistics are held."""

    _frostline: State
    _plain_class: type[nn.Module]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Do nothing: the user's own hook has seen the plain class, and may refuse to see it twice."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a plain module: `type(module)(...)` means another one like it."""
        return cls._plain_class(*args, **kwargs)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Take the parts of a partial tensor (that is how weights are tied); refuse to lose one."""
        state = self._frostline
        if name not in state.layouts or state.assigning:
            super().register_parameter(name, param)
        elif isinstance(param, PartialTensor):
            self._set_parts(name, param.frozen, param.learned, param.selected)
        elif (tied := given_with(param)) is not None:
            self._set_parts(name, param, *tied)
        elif is_sharded(param):
            raise PartialTensorError(
                f"{name}: tensor parallelism cannot share out a partial tensor. Leave its module out of "
                "parallelize_module; the other modules may be in it."
            )
        else:
            raise PartialTensorError(
                f"{name}: a new Parameter would replace a partial tensor, and its learned part with it. "
                f"Write values with `module.{name}.data = value`, or call fl.merge(model) first."
            )

    def _set_parts(self, name: str, frozen: Tensor | None, learned: Tensor, layout: Layout) -> None:
        self._parameters[name] = cast(nn.Parameter, frozen)
        self._parameters[learned_name(name)] = cast(nn.Parameter, learned)
        self._frostline.layouts[name] = layout

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PartialModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        layouts = self._frostline.layouts
        for name, layout in layouts.items():
            layouts[name] = layout.to(frozen_part(self, name).device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        state = self._frostline
        for name, layout in state.layouts.items():
            frozen, learned = parts(self, name)
            if not (layout.read_only or frozen.is_meta):  # nothing depends on what stands there: learned values may
                sharded.put(layout, frozen, sharded.whole(learned))
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, table in state.mapped.items():
            whole = name not in state.layouts
            destination[prefix + name] = (
                table.tensor if whole else state.layouts[name].join(*parts(self, name)).detach()
            )
        for name in state.layouts:
            destination.pop(prefix + learned_name(name), None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        _, missing, _, errors = args
        state = self._frostline
        given = dict(state_dict)  # the caller's stays as it is
        wholes = {name: given.pop(prefix + name, None) for name in state.mapped}
        for name, whole in wholes.items():
            problem = self._differs_from_file(name, whole)
            if problem == "missing":
                missing.append(prefix + name)
            elif problem:
                errors.append(f"{prefix}{name}: {problem}")
                wholes[name] = None
        # Load into the frozen parts alone, hooks of the user's and all. What then stands at learned places and did not
        # stand there before is new. So a plain key that is missing or misshapen is reported once, under its own name.
        # (What `torch.distributed.checkpoint` has read into `state_dict()` stands there already.)
        for name, layout in state.layouts.items():
            frozen, learned = parts(self, name)
            key = prefix + learned_name(name)
            if given.get(key, learned) is not learned:  # set_model_state_dict adds each process's own
                errors.append(f"{key}: does not say of which {layout.kind}. Load {prefix}{name}, or use save_learned.")
            given[key] = learned.detach()
            values = sharded.whole(learned)  # asked for by every process, whatever it holds itself
            if not (name in wholes or learned.is_meta or sharded.same_memory(given.get(prefix + name), frozen)):
                sharded.put(layout, frozen, values)
        state.assigning = True
        try:
            super()._load_from_state_dict(given, prefix, local_metadata, *args)
        finally:
            state.assigning = False
        for name, layout in state.layouts.items():
            frozen, learned = parts(self, name)
            whole = wholes.get(name, frozen)
            if learned.is_meta and not frozen.is_meta:
                self._parameters[learned_name(name)] = sharded.like(learned, sharded.take(layout, frozen))
            elif whole is not None:
                sharded.update(layout, learned, whole)

    def _differs_from_file(self, name: str, full: Tensor | None) -> str:
        """Why `full` cannot be loaded over the mapped tensor `name`; empty if it can: only learned places differ."""
        frozen, layout = frozen_part(self, name), self._frostline.layouts.get(name)
        if full is None:
            return "missing"
        if full.shape != frozen.shape:
            return f"shape {tuple(full.shape)} in the checkpoint, {tuple(frozen.shape)} in the mapped file"
        for start in range(0, len(frozen), _CHECKED):
            here = slice(start, start + _CHECKED)
            same = (full[here] == frozen[here].to(full.device)).all(1)
            if layout is not None and layout.slots is not None:
                same |= (layout.slots[here] >= 0).to(same.device)
            if not same.all():
                return "its frozen rows differ from the mapped file, which is never written to"
        return ""

    def train(self, mode: bool = True) -> PartialModule:
        """Set training mode; held statistics stay in eval mode."""
        self._frostline.training = mode
        super().train(mode and not self._frostline.held)
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Name the class by how it is made, because no import finds it."""
        cls: Any = type(self)
        _, _, *state = cast(tuple[Any, ...], super().__reduce_ex__(2))
        return _unpickle, (cls._plain_class, cls._partial_names), *state


def _unpickle(plain: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    return object.__new__(partial_class(plain, names))


def parts(module: nn.Module, name: str) -> tuple[Tensor, nn.Parameter]:
    """The frozen and the learned part of the partial tensor `name` of `module`."""
    return frozen_part(module, name), cast(nn.Parameter, module._parameters[learned_name(name)])


def frozen_part(module: nn.Module, name: str) -> Tensor:
    """The frozen part of the tensor `name` of `module`: a Parameter, or the tensor of a mapped file."""
    mapped = module.__dict__["_frostline"].mapped
    return cast(Tensor, mapped[name].tensor if name in mapped else module._parameters[name])


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that `module` had before any plan."""
    return getattr(type(module), "_plain_class", type(module))


_classes: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def partial_class(plain: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The subclass of `plain` in which the tensors `names` are partial; one class, so compiled code is reused."""
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
        if plain.__setattr__ is nn.RNNBase.__setattr__:  # it keeps that list, and FSDP2 would assign through it
            namespace["__setattr__"] = nn.Module.__setattr__
    return type(plain.__name__, (PartialModule, plain), namespace)


def _partial_tensor(name: str) -> property:
    def get(module: nn.Module) -> Tensor:
        # By `__dict__`, which raises KeyError: after an AttributeError `nn.Module` would hand out the frozen part.
        layouts = module.__dict__["_frostline"].layouts
        frozen = frozen_part(module, name)
        if name not in layouts:  # a mapped table of which nothing learns
            return frozen
        learned = parts(module, name)[1]
        if is_sharded(frozen):  # FSDP2 asks for the Parameter that it has sharded
            if is_sharded(learned) and getattr(module, "sparse", False):
                raise PartialTensorError(
                    f"{name}: fully_shard cannot reduce sparse gradients. Set sparse=False on its module; the gradient "
                    "holds only the rows that learn."
                )
            remember_given(frozen, learned, layouts[name])
            shared_over(layouts[name], frozen)
            return frozen
        if not (layouts[name].read_only or isinstance(frozen, nn.Parameter)) and isinstance(learned, nn.Parameter):
            if not frozen.requires_grad:
                raise PartialTensorError(
                    f"{name}: functional_call was given a tensor without gradient, which may be the whole or the "
                    "frozen part alone. Pass both parts as they are in named_parameters(), or both detached; or call "
                    "fl.merge(model) first, and pass the whole."
                )
            return frozen  # `functional_call` was given the whole tensor under its plain name
        if not torch.compiler.is_compiling():
            check_agreement(name, layouts[name], frozen, learned)
        return partial_tensor(frozen, learned, layouts[name])

    def set(module: nn.Module, value: object) -> None:
        # Assigned values go through nn.Module.__setattr__; only what has taken the Parameter away comes here.
        raise PartialTensorError(
            f"{name}: a partial tensor has two parts, and FullyShardedDataParallel or the like would set one. "
            "Use torch.distributed.fsdp.fully_shard."
        )

    return property(get, set)


def _flat_weights(module: Any) -> list[Tensor | None]:
    """A recurrent module's weights as they are now; the list it keeps itself would hold the frozen parts for ever.

    Partial ones are joined here, where the recurrence would join them: torch's compiler leaves recurrent modules alone,
    but not the functions of this package that they call, and its graph of such a call has no backward.
    """
    weights = [getattr(module, name, None) for name in module._flat_weights_names]
    return [weight.joined() if isinstance(weight, PartialTensor) else weight for weight in weights]


def _ignore(module: nn.Module, *args: Any) -> None:
    """Recurrent modules set or flatten their own list; ours is made at each use."""


_alive: WeakKeyDictionary[Layout, weakref.ref[PartialTensor]] = WeakKeyDictionary()  # the last one of each, if held
_given: Any = WeakTensorKeyDictionary()  # sharded frozen part -> weak reference to its learned part, layout


def partial_tensor(frozen: Tensor, learned: Tensor, layout: Layout) -> PartialTensor:
    """The partial tensor of these parts: the one that somebody still holds, or else a new one."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not isinstance(learned, nn.Parameter):
        return PartialTensor.of(frozen, learned, layout)
    last = _alive.get(layout)
    held = None if last is None else last()
    if held is not None and held.frozen is frozen and held.learned is learned and held.is_current():
        return held
    made = PartialTensor.of(frozen, learned, layout)
    _alive[layout] = weakref.ref(made)
    return made


def remember_given(frozen: Tensor, learned: Tensor, layout: Layout) -> None:
    """Note that `frozen`, which is sharded, is handed out alone."""
    _given[frozen] = weakref.ref(learned), layout


def given_with(frozen: Tensor | None) -> tuple[nn.Parameter, Layout] | None:
    """The learned part and the layout that belong to a sharded frozen part which was handed out alone; None if none."""
    if frozen is None or frozen not in _given:
        return None
    reference, layout = _given[frozen]
    learned = reference()
    return None if learned is None else (learned, layout)
