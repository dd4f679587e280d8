"""Restore, bit for bit, everything that a pass and a step of the optimizers may modify.

restored.py   the context manager: whatever its block modifies is restored at the end
snapshot.py   modules, tensors and optimizers as they were, and their restoration
reachable.py  the modules, random generators and leaf tensors that a function may use
torch_calls.py  what a call of a torch function reads and writes
attributes.py what an object holds besides its `__dict__`
values.py     the values of one tensor
rng.py        random generators          bits.py   tensors compared bit by bit
"""
