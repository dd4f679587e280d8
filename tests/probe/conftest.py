"""What a verdict says about the next step."""

import pytest

MOVES = {"learns", "learns in part", "moves without gradient"}
MAY_MOVE = {"not finite"}  # a NaN in the gradient makes a NaN of the weight, an Inf may or may not


def _moves_as_said(verdict, moved, notes=()):
    """Whether a tensor of which `moved` entries moved did what its verdict and the notes beside it say."""
    if verdict in MAY_MOVE:
        return True
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
