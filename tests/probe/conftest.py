"""What a verdict predicts of the next step, and an image of all state that looking at a model must not change."""

import random

import numpy as np
import pytest
import torch

from frostline.partial.tensor import LearnedIndices

MOVES = {"learns", "learns in part", "moves without gradient"}
MAY_MOVE = {"not finite"}  # a NaN in the gradient makes a NaN of the weight, an Inf may or may not


def _moves_as_said(verdict, moved, notes=()):
    """Return whether the verdict and notes of a tensor allow that `moved` of its entries moved."""
    if verdict in MAY_MOVE or (verdict in MOVES and "zero gradient" in notes):
        return True  # behind a factor that starts at zero the first step may move nothing, and the second does
    predicted = verdict in MOVES or any(note.startswith("moves without gradient") for note in notes)
    return predicted == (moved > 0)


@pytest.fixture
def moves_as_said():
    return _moves_as_said


@pytest.fixture
def agree():
    """Return a function that asserts that an explanation and a trial step agree on every tensor."""

    def check(explanation, trial):
        findings, changes = explanation.to_dict(), trial.to_dict()
        assert list(findings) == list(changes)
        for name, finding in findings.items():
            moved = changes[name]["entries_moved"]
            assert _moves_as_said(finding["verdict"], moved, finding["notes"]), (name, finding, changes[name])

    return check


def _image(value, seen=None):
    """Return identities, bits and versions of a value and of all that it holds, to be compared."""
    seen = {} if seen is None else seen
    if isinstance(value, torch.Tensor):
        grad = None if not value.is_leaf or value.grad is None else _image(value.grad, seen)
        plain = value.detach().to_dense() if value.is_sparse else value.detach()
        bits = plain.resolve_conj().reshape(-1).view(torch.uint8).numpy().tobytes()
        return (id(value), value._version, value.requires_grad, bits, grad)
    if isinstance(value, dict):
        return [(id(key), _image(item, seen)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_image(item, seen) for item in value]
    if isinstance(value, LearnedIndices):  # immutable; what it keeps beside its fields is computed from them
        return [id(value), _image(value.flat, seen)]
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
