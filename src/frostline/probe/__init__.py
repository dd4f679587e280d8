"""Look, never change: gradients, what will move and why, a step that is taken back, what happened over time.

reach.py        what a function can touch, found without running it
keep.py         what a pass and a step can change, remembered and put back (before.py, undo.py, randomness.py)
gradients.py    the value of a gradient, no trace of the pass
explain.py      what will move at the next step, what will not, and the line that says why
  verdicts.py     the words and their order; reasons.py: why one holds; explanation.py: the table, the dict, the page
  observe.py      one forward and backward, watched
  trace.py        which parameters reach a tensor (calls.py, entry.py, memory.py, numbers.py, graph.py, sites.py)
  groups.py       what the optimizers hold
step.py         a step of the optimizers; bits.py: bits compared
trial.py        the next training step: what it moves, and everything back (moved.py: what one tensor did)
trajectory.py   values over training at bounded memory
watched.py      one thing that is looked at at each step: a tensor, rows, a function
record.py       Recorder: called once a step
record_file.py  the file that it writes, and reading it
run.py          what a run leaves in its folder for `frostline report` (movement.py: rows before and after)
"""

from frostline.probe.explain import explain
from frostline.probe.explanation import Explanation, Finding
from frostline.probe.gradients import gradients
from frostline.probe.movement import Movement
from frostline.probe.record import Recorder
from frostline.probe.record_file import Recorded, read_record
from frostline.probe.run import Run, describe_run, read_run
from frostline.probe.trial import Trial, trial_step

__all__ = [
    "Explanation",
    "Finding",
    "Movement",
    "Recorded",
    "Recorder",
    "Run",
    "Trial",
    "describe_run",
    "explain",
    "gradients",
    "read_record",
    "read_run",
    "trial_step",
]
