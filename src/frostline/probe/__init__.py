"""Look, never change: gradients, what will move and why, a step that is taken back.

inputs.py          check a model, a loss function, optimizers
gradients.py       the value of a gradient, without a trace of the pass
trial.py           the next training step: what it moves, and everything restored (changes.py: what one tensor did)
autograd_graph.py  the graph of a computation, walked back to its leaves
restore/           snapshot and restore everything that a pass and a step may modify
trace/             which parameters reach a tensor, by value and by gradient
explain/           what will move at the next step, what will not, and the line that says why
"""

from frostline.probe.explain.explain import explain
from frostline.probe.explain.explanation import Explanation, Finding
from frostline.probe.gradients import gradients
from frostline.probe.trial import Trial, trial_step

__all__ = ["Explanation", "Finding", "Trial", "explain", "gradients", "trial_step"]
