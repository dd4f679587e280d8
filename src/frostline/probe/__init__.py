"""Look, never change: gradients, what will move and why, a step that is taken back, what happened over time.

reach.py        what a function can touch, found without running it
keep.py         everything that a pass can change, remembered and put back
"""
