"""Explain for each parameter whether it moves at the next step, and why.

backward.py          one watched pass: the gradient that each tensor got
vanishing.py         where a gradient becomes zero, NaN or Inf
faint.py             gradients that are faint beside the others
step.py              the step, and whether a gradient had a part in it
optimizer_groups.py  what the optimizers hold
verdicts.py          the verdicts, and which applies
reasons.py           why, and the line of the user's code
fixes.py             what to type for each verdict, and its page
explanation.py       all of it, as values
table.py             all of it, as text (blocks.py: long models by block)
ranks.py             all of it, of several processes
watching.py          the user's own step, watched while it runs (watched_run.py, run_trace.py: what is seen of it)
findings.py          what is found of each tensor
expected.py          the verdicts that a build expects, and where they differ
"""
