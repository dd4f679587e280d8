"""What `explain` says of single faults and good ways, and that it leaves nothing behind.

cases.py        what several of these files use
cuts.py         every way to cut a gradient
test_*.py       one subject each
"""
