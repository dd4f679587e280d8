"""A plugin of pytest with the fixture `assert_learns`; pytest finds it where frostline is installed.

torch is imported when a test uses the fixture, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from torch import Tensor, nn


class AssertLearns(Protocol):
    """What `assert_learns` is."""

    def __call__(
        self,
        model: nn.Module,
        loss_fn: Callable[[], Tensor],
        optimizer: Any = None,
        *,
        except_: Iterable[str] = (),
    ) -> None:
        """Fail unless every tensor learns."""


@pytest.fixture
def assert_learns() -> AssertLearns:
    """A function that fails the test, with the explanation, if a tensor of a model does not learn.

    `assert_learns(model, loss_fn, optimizer, except_=["embed.*"])` takes the arguments of `fl.explain`, and undoes what
    it tries as that does. `except_` holds names, or patterns, of tensors that need not learn.
    """
    return _assert_learns


def _assert_learns(
    model: nn.Module, loss_fn: Callable[[], Tensor], optimizer: Any = None, *, except_: Iterable[str] = ()
) -> None:
    __tracebackhide__ = True
    from fnmatch import fnmatchcase

    from frostline.errors import PatternError
    from frostline.printing import listed
    from frostline.probe import explain
    from frostline.probe.explain.verdicts import LEARNS, LEARNS_IN_PART

    patterns = [except_] if isinstance(except_, str) else list(except_)
    explanation = explain(model, loss_fn, optimizer)
    names = {finding.name: (finding.name, *finding.tied) for finding in explanation.findings}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for each in names.values() for name in each):
            raise PatternError(
                f"except_: {pattern!r} matches no tensor of the model. Its tensors: {listed(names, most=5)}."
            )
    still = [
        finding.name
        for finding in explanation.findings
        if finding.verdict not in (LEARNS, LEARNS_IN_PART)
        and not any(fnmatchcase(name, pattern) for name in names[finding.name] for pattern in patterns)
    ]
    if explanation.raised:
        raise AssertionError(f"nothing is known to learn\n\n{explanation}")
    if still:
        count = f"{len(still)} tensor{'s do' if len(still) > 1 else ' does'} not learn"
        raise AssertionError(f"{count}: {listed(still, most=5)}\n\n{explanation}")
