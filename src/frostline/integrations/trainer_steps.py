"""What the callbacks that explain share: watch some steps that a trainer takes, then say what was seen."""

from __future__ import annotations

from types import FrameType
from typing import Any

from torch import nn

from frostline.errors import ProbeError
from frostline.probe.explain.explanation import Explanation
from frostline.probe.explain.ranks import of_all_ranks
from frostline.probe.explain.watching import Watching
from frostline.probe.trace.patches import is_traced


class TrainerSteps:
    """Steps of a trainer, watched once.

    Args:
        steps: How many, from 1.
        fail: Whether to raise if something does not train.

    Attributes:
        explanation: What was seen, of all processes together; None before the last of the steps.
    """

    def __init__(self, steps: int, fail: bool) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps: expected a number of steps from 1, got {steps!r}.")
        self.steps, self._fail = steps, fail
        self.explanation: Explanation | None = None
        self._watching: Watching | None = None
        self._first = 0

    def begin(self, step: int, model: nn.Module, optimizer: Any, within: FrameType | None = None) -> None:
        """Watch from here on, unless that is done, or this thread is watched by somebody else (`frostline explain`).

        Args:
            step: How many steps there were so far.
            model: What is trained.
            optimizer: What steps it.
            within: What runs while the trainer does, of a trainer that tells callbacks no error.
        """
        if self.explanation is None and self._watching is None and not is_traced():
            self._first = step
            self._watching = Watching(model, optimizer).__enter__()
            if within is not None:
                self._watching.end_with(within)

    def begin_anew(self) -> None:
        """Forget a watch that training has left by an error."""
        if self._watching is not None:
            self._watching.forget()
            self._watching = None

    def end(self, step: int, is_first: bool) -> None:
        """Say what was seen if all steps were taken; `is_first` is whether this process prints."""
        if self._watching is not None and step >= self._first + self.steps:
            self.leave(None, is_first)

    def leave(self, error: BaseException | None, is_first: bool) -> None:
        """Stop watching, and say what was seen.

        Args:
            error: What ended the training, if something did; the other processes may then be gone.
            is_first: Whether this process prints.

        Raises:
            ProbeError: With `fail`, in each process, if something does not train in any of them.
        """
        if self._watching is None:
            return
        watching, self._watching = self._watching, None
        watching.__exit__(None if error is None else type(error), error, None)
        if error is not None and not isinstance(error, Exception):
            return  # interrupted
        try:
            own = watching.explanation
        except ProbeError as failure:  # the training goes on, and the other processes wait
            own = Explanation([], [], [], raised=str(failure))
        self.explanation = own if error is not None else of_all_ranks(own)
        if is_first:
            print(f"\nfrostline: what the training step did to {type(watching.model).__name__}\n\n{self.explanation}\n")
        if self._fail and error is None and (self.explanation.alarms or self.explanation.raised):
            raise ProbeError(str(self.explanation))
