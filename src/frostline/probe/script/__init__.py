"""Explain the training step of a script that knows nothing of it.

run.py      run a script as `python script.py` would
watch.py    find the models and optimizers of a running script, and watch its first step
"""
