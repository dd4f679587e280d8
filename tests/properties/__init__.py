"""Drawn cases: what people train with, put together at random, and each compared with a slow and obvious oracle.

modules.py      what is trained: lookups, products, recurrent modules, a tied head, modules with a forward of their own
optimizers.py   what it is trained with: all of torch.optim, ours, and well-maintained ones of others
others.py       what other code does with weights: hooks, terms of a loss, writes, readings
cases.py        a Case: one choice for each axis; how hypothesis draws it
oracle.py       the same training run on the plain, dense module
run.py          runs a Case on both, and checks everything that must hold
counts.py       how many cases were drawn, for each choice of each axis

FROSTLINE_SOAK=30000 draws more than the usual 2,000; FROSTLINE_SEED=7 draws others, and the same ones again.
"""
