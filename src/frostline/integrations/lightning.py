"""A callback for Lightning's Trainer: explain the training step that it takes anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frostline.errors import MissingExtraError
from frostline.integrations.trainer_steps import TrainerSteps
from frostline.probe.explain.explanation import Explanation

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError:
            raise MissingExtraError("the callback needs Lightning. Install it: pip install lightning") from None


class ExplainCallback(Callback):
    """Explain the training step that Lightning's Trainer takes anyway: what learns, what does not, and why.

    The first step (with its accumulation, its clipping, its precision and its schedulers) is watched as in
    `fl.watching`, and the table printed after it, by the first process. Losses, weights and random numbers are those of
    a run without the callback. With several processes each sees its own batch, and what any of them finds is in the
    table. A tensor that gets no gradient from the batch of one process, but from that of another, learns.

    Args:
        steps: How many optimizer steps to watch, from 1: Lightning's `global_step`.
        fail: Raise in every process, after the watched steps, if something does not train.

    Attributes:
        explanation: The Explanation; None before the watched steps have ended.

    Raises:
        ValueError: `steps` is less than 1.
        ProbeError: With `fail`, the table, in `trainer.fit()`.

    Cost: that of `fl.watching` for these steps; none afterwards.

    Example:
        >>> import frostline as fl
        >>> callback = fl.integrations.lightning.ExplainCallback()  # Trainer(callbacks=[callback])
        >>> callback.explanation is None
        True
    """

    def __init__(self, steps: int = 1, fail: bool = False) -> None:
        self._watched = TrainerSteps(steps, fail)

    @property
    def explanation(self) -> Explanation | None:
        """What was seen; None before the watched steps have ended."""
        return self._watched.explanation

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin to watch."""
        self._watched.begin(trainer.global_step, pl_module, trainer.optimizers or None)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Explain, when the steps have been taken, and schedulers have stepped."""
        self._watched.end(trainer.global_step, trainer.is_global_zero)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Explain what was seen if training ends before."""
        self._watched.leave(None, trainer.is_global_zero)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Explain what was seen until training raised; the exception goes on."""
        self._watched.leave(exception, trainer.is_global_zero)
