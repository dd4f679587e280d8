"""What a verdict says about the next step, and a picture of everything that looking must not change."""

import random

import numpy as np
import pytest
import torch

MOVES = {"learns", "learns in part", "moves without gradient"}
MAY_MOVE = {"not finite"}  # a NaN in the gradient makes a NaN of the weight, an Inf may or may not


def _moves_as_said(verdict, moved, notes=()):
    """Whether a tensor of which `moved` entries moved did what its verdict and the notes beside it say."""
    if verdict in MAY_MOVE or (verdict in MOVES and "zero gradient" in notes):
        return True  # behind a factor that starts at zero the first step may move nothing, and the second does
    said = verdict in MOVES or any(note.startswith("moves without gradient") for note in notes)
    return said == (moved > 0)


@pytest.fixture
def moves_as_said():
    return _moves_as_said


@pytest.fixture
def agree():
    """Asserts that an explanation and a trial step speak of the same tensors and say the same of each."""

    def check(explanation, trial):
        said, seen = explanation.to_dict(), trial.to_dict()
        assert list(said) == list(seen)
        for name, one in said.items():
            assert _moves_as_said(one["verdict"], seen[name]["moved"], one["notes"]), (name, one, seen[name])

    return check


def _image(value, seen=None):
    """All that can be told of a value: identities, bits, versions, memory; of what it holds too."""
    seen = {} if seen is None else seen
    if isinstance(value, torch.Tensor):
        grad = None if not value.is_leaf or value.grad is None else _image(value.grad, seen)
        plain = value.detach().to_dense() if value.is_sparse else value.detach()
        bits = plain.resolve_conj().reshape(-1).view(torch.uint8).numpy().tobytes()
        return (id(value), value._version, value.requires_grad, bits, grad)
    if isinstance(value, dict):
        return [(id(key), _image(one, seen)) for key, one in value.items()]
    if isinstance(value, list | tuple):
        return [_image(one, seen) for one in value]
    if hasattr(value, "__dict__") and not callable(value) and id(value) not in seen:
        seen[id(value)] = value
        return [id(value), _image(vars(value), seen)]
    if hasattr(value, "param_groups") and id(value) not in seen:
        seen[id(value)] = value
        return [id(value), _image(vars(value), seen)]
    return value if isinstance(value, int | float | str | bool | None) else id(value)


def _everything(model, optimizer):
    randomness = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    modules = [
        (module.training, _image({k: v for k, v in vars(module).items() if k != "_modules"}))
        for module in model.modules()
    ]
    return _image(list(model.parameters())), _image(list(model.buffers())), modules, _image(optimizer), randomness


@pytest.fixture
def image():
    return _image


@pytest.fixture
def everything():
    return _everything
