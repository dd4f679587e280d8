"""Restore the state of random generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def rng_restored() -> Iterator[None]:
    """Restore the global generators after the block: torch's, numpy's and Python's; CUDA's only if it is in use."""
    cpu, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # asking would initialize CUDA
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        elif torch.cuda.is_initialized():  # first used in the block, so its state before was that of its seed
            for generator in torch.cuda.default_generators:
                generator.manual_seed(generator.initial_seed())


def rng_restorer(generator: Any) -> Callable[[], object]:
    """Return a function that restores the present state of one generator.

    Args:
        generator: torch.Generator, numpy's Generator, BitGenerator or RandomState, Python's Random.

    Raises:
        TypeError: It is not a random generator.
    """
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, np.random.Generator):
        generator = generator.bit_generator
    if isinstance(generator, np.random.BitGenerator):
        return partial(setattr, generator, "state", generator.state)
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state(legacy=False))
    if isinstance(generator, random.SystemRandom):
        return lambda: None  # it has no state
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    raise TypeError(
        f"generators: {type(generator).__name__} is not a random generator. "
        "List torch.Generator, numpy.random.Generator or RandomState, or random.Random objects."
    )
