"""`plan.carry`: entries that still learn keep their optimizer state, and frozen ones never move again.

Two oracles: test_bits.py and test_one_by_one.py. cases.py has what several of these files use.
"""
