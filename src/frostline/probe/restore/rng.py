"""Random generators, put back to where they stood."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Put back the generators that everyone shares: torch's, numpy's, Python's; CUDA's only where it is in use."""
    cpu, numpys, pythons = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        np.random.set_state(numpys)
        random.setstate(pythons)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        elif torch.cuda.is_initialized():  # first used in the block: back to the start
            for generator in torch.cuda.default_generators:
                generator.manual_seed(generator.initial_seed())


def rewound(generator: Any) -> Callable[[], object]:
    """What puts one generator back to where it stands now.

    Args:
        generator: torch.Generator, numpy's Generator, BitGenerator or RandomState, Python's Random.

    Raises:
        TypeError: It is none of them.
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
        f"generators: {type(generator).__name__} is no random generator. "
        "List torch.Generator, numpy.random.Generator or RandomState, or random.Random objects."
    )
