"""All processes have to make the same plan: the same places, in the same order.

DDP and FSDP2 put learned rows of several processes together by their order alone. Where the processes chose other rows,
or another order of them (a Python set of words has one of its own in each), rows would be mixed up, silently. So the
first forward that all processes make together compares a digest of the places, once.
"""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frostline.errors import PartialTensorError
from frostline.partial.layout import Layout

_meshes: WeakKeyDictionary[Layout, Any] = WeakKeyDictionary()  # layout of a sharded tensor -> where it is sharded
_agreed: WeakKeyDictionary[Layout, bool] = WeakKeyDictionary()


def shared_over(layout: Layout, frozen: Any) -> None:
    """Note over which processes FSDP2 has shared out `frozen`."""
    _meshes[layout] = frozen.device_mesh


def check_agreement(name: str, layout: Layout, frozen: Tensor, learned: Tensor) -> None:
    """Compare the places with the other processes', if this is a forward that all make and the first of them.

    Raises:
        PartialTensorError: They are not the same; or DDP was built before the plan, and nobody would average the
            gradients of `learned`; on every process.
    """
    if not (dist.is_available() and dist.is_initialized()) or layout in _agreed:
        return
    ddp: Any = nn.parallel.DistributedDataParallel._active_ddp_module
    if ddp is not None and not (ddp.parameters_to_ignore or any(learned is one for one in ddp._module_parameters)):
        raise PartialTensorError(
            f"{name}: its plan is newer than DistributedDataParallel, which knows only the parameters it was built "
            "with. Wrap the model again after train_only."
        )
    groups = _groups(layout)
    if not groups:
        return
    digest = hashlib.sha256()
    for place in layout.places:
        digest.update(place.cpu().numpy().data)
    number = int.from_bytes(digest.digest()[:7], "big")
    extremes = torch.tensor([number, -number], device=frozen.device)
    for group in groups:
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    if extremes.tolist() != [number, -number]:
        raise PartialTensorError(
            f"{name}: the processes chose different {layout.kind}, or another order of them, and would mix them up. "
            "Sort the ids, and choose them from the same data (a Python set has another order in every process)."
        )
    _agreed[layout] = True


def _groups(layout: Layout) -> list[Any]:
    """The groups of processes that take part in this forward; empty if that is not certain."""
    ddp: Any = nn.parallel.DistributedDataParallel._active_ddp_module
    if ddp is None:
        mesh = _meshes.get(layout)
        return [] if mesh is None else [mesh.get_group(dim) for dim in range(mesh.ndim)]
    together = torch.is_grad_enabled() and ddp.training and ddp.require_backward_grad_sync
    return [ddp.process_group] if together and not ddp._join_config.enable else []
