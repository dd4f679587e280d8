"""Inspect a training run without changing it: gradients, what will move and why, a step that is rolled back.

inputs.py          check what the functions of this room are given: a model, a loss, optimizers
gradients.py       the values of gradients, without side effects
outputs.py         tensors inside a pass: what a module's calls return, and what `mark` has named
trial.py           the next training step: what it moves, then everything restored (changes.py: those of one tensor)
autograd_graph.py  walk the autograd graph back to its leaves
restore/           snapshot and restore everything that a pass and a step may modify
trace/             which parameters reach a tensor, by value and by gradient
explain/           what will move at the next step, what will not, and the line of code that says why
"""

from frostline.probe.explain.explain import explain
from frostline.probe.explain.explanation import Explanation
from frostline.probe.explain.verdicts import Finding
from frostline.probe.explain.watching import watching
from frostline.probe.gradients import gradients
from frostline.probe.outputs import mark
from frostline.probe.trial import Trial, trial_step

__all__ = ["Explanation", "Finding", "Trial", "explain", "gradients", "mark", "trial_step", "watching"]
