"""`plan.carry`: what goes on learning goes on as if nothing had happened, what is frozen stands still for good.

Two oracles: test_bits.py and test_one_by_one.py. cases.py has what several of these files use.
"""
