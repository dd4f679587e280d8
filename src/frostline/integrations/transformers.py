"""Callbacks for the Trainer of transformers, and so for TRL's: LearnedCallback and ExplainCallback.

LearnedCallback: a checkpoint of the Trainer has the tables in their own dtype, so rows that learn in float32 over a
bfloat16 table are rounded in it; that of a PeftModel has the adapters alone. The callback writes a learned file into
each checkpoint, and loads it when the Trainer resumes from that checkpoint or returns to the best one.

ExplainCallback: what the training step that the Trainer takes did to each tensor, and why.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

from frostline.errors import LearnedFileError, MissingExtraError
from frostline.integrations.trainer_steps import TrainerSteps
from frostline.partial import load_learned, save_learned
from frostline.partial.sharded import is_sharded
from frostline.probe.explain.explanation import Explanation

try:
    from transformers import TrainerCallback, TrainerState
except ImportError:
    raise MissingExtraError(
        "the callback needs transformers. Install it: pip install 'frostline[trainers]', or transformers alone"
    ) from None

FILE = "learned.safetensors"


class LearnedCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Save what learns into each checkpoint of the Trainer, and load it on resuming: to the bit, in any dtype.

    Args:
        resume_from_checkpoint: The checkpoint that the Trainer resumes from, if that is not in its `output_dir`:
            callbacks are not told.

    Raises:
        LearnedFileError: The Trainer resumes from a checkpoint without the file, or from another one than this finds.
            A model that is sharded when training begins cannot load: call `load_learned` before.

    Cost: that of `save_learned` at each checkpoint, and of `load_learned` once.

    Example:
        >>> import frostline as fl
        >>> callback = fl.integrations.transformers.LearnedCallback()  # Trainer(model, ..., callbacks=[callback])
    """

    def __init__(self, resume_from_checkpoint: str | os.PathLike[str] | None = None) -> None:
        self._resume_from = resume_from_checkpoint

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Write the learned file into the checkpoint that has just been written."""
        if state.is_world_process_zero or any(map(is_sharded, model.parameters())):
            folder = _checkpoint(args, state)
            folder.mkdir(parents=True, exist_ok=True)
            save_learned(_unwrapped(model), folder / FILE)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Load the learned file of the checkpoint that is resumed from, after the Trainer has loaded the rest."""
        if state.global_step == 0:
            return
        given = self._resume_from or args.resume_from_checkpoint
        folder = Path(given) if isinstance(given, str | os.PathLike) else _checkpoint(args, state)
        if not (folder / FILE).is_file() or not _is_of(state, folder):
            raise LearnedFileError(
                f"{folder}: not the checkpoint that is resumed from, or without {FILE}. "
                "Pass that checkpoint: LearnedCallback(resume_from_checkpoint=...)."
            )
        load_learned(_unwrapped(model), folder / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Load the learned file of the best checkpoint, if the Trainer has just returned to it."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            load_learned(_unwrapped(model), Path(state.best_model_checkpoint) / FILE)


class ExplainCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Explain the training step that the Trainer takes anyway: what learns, what does not, and why.

    The first step (with its accumulation, its clipping and its scheduler) is watched as in `fl.watching`, and the table
    printed after it, by the first process. Losses, weights and random numbers are those of a run without the callback.
    Give it to every process: each sees its own batch, and what any of them finds is in the table. A tensor that gets no
    gradient from the batch of one process, but from that of another, learns.

    Args:
        steps: How many optimizer steps to watch, from 1.
        fail: Raise in every process, after the watched steps, if something does not train.

    Attributes:
        explanation: The Explanation; None before the watched steps have ended.

    Raises:
        ValueError: `steps` is less than 1.
        ProbeError: With `fail`, the table, in `trainer.train()`.

    Cost: that of `fl.watching` for these steps; none afterwards.

    Example:
        >>> import frostline as fl
        >>> callback = fl.integrations.transformers.ExplainCallback()  # Trainer(model, ..., callbacks=[callback])
        >>> callback.explanation is None
        True
    """

    def __init__(self, steps: int = 1, fail: bool = False) -> None:
        self._watched = TrainerSteps(steps, fail)

    @property
    def explanation(self) -> Explanation | None:
        """What was seen; None before the watched steps have ended."""
        return self._watched.explanation

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what another training that raised has left."""
        self._watched.begin_anew()

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Begin to watch."""
        # DeepSpeed steps tensors of its own, of which the model knows nothing.
        optimizer = None if args.deepspeed else optimizer
        self._watched.begin(state.global_step, model, optimizer, _trainers_frame())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Explain, when the steps have been taken, and schedulers have stepped."""
        self._watched.end(state.global_step, state.is_world_process_zero)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Explain what was seen if training ends before."""
        self._watched.leave(None, state.is_world_process_zero)


def _trainers_frame() -> FrameType | None:
    """Return the frame of the Trainer's loop, which has called a callback."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in (__name__, TrainerCallback.__module__):
        frame = frame.f_back
    return frame


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _is_of(state: Any, folder: Path) -> bool:
    """Return whether `state` was read from `folder`: the Trainer restores the step and the log."""
    file = folder / "trainer_state.json"
    if not file.is_file():
        return False
    saved = TrainerState.load_from_json(str(file))
    return bool(saved.global_step == state.global_step and saved.log_history == state.log_history)


def _unwrapped(model: Any) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model  # type: ignore[no-any-return]
