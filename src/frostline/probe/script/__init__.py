"""Explain the training step of a script that knows nothing of it.

watch.py    watch its first step, or its N-th, from outside
models.py   find its models and their names, by themselves
ranks.py    compare what several processes found
"""
