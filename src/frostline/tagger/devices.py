"""Where a tagger computes, and how finely.

Everything is drawn on the CPU and then moved: the same seed draws the same on every device, and what training goes on
from needs the generator of the CPU alone. Files are written as on the CPU: float32, wherever they came from.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from textwrap import shorten

import torch

from frostline.errors import FrostlineError

_REASON = 100  # characters of what torch says


def usable(name: str | torch.device) -> torch.device:
    """Return the device of this name, having used it.

    Raises:
        FrostlineError: There is no such device here.

    Example:
        >>> usable("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # each backend has its own way to be missing
        missing = isinstance(error, NotImplementedError)  # which torch says in a page of names
        why = "torch was built without it" if missing else shorten(str(error), _REASON, placeholder=" ...")
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise FrostlineError(
            f"device: {str(name)!r} cannot be used here ({why}). Pass one that can: {', '.join(here)}."
        ) from None
    return device


def precision(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    """Return what to compute in: the products of matrices in bfloat16 if `bf16`, else everything in float32.

    Weights, gradients and the optimizer's state stay float32 in both.

    Raises:
        FrostlineError: The device has no bfloat16.
    """
    if not bf16:
        return nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise FrostlineError(f"bf16: {device} has no bfloat16. Leave it out.")
    return torch.autocast(device.type, torch.bfloat16)
