"""What `explain` says of single faults and healthy ways to train, and that it changes nothing.

cases.py   helpers
cuts.py    every way to cut a gradient
"""
