"""Trace a forward pass: which parameters reach a tensor by value and by gradient, and where a gradient was lost.

trace.py            the mode that sees every torch function
patches.py          what no mode sees, and other threads
torch_calls.py      what a call reads and writes
provenance.py       what is known of one tensor, and of one storage
escaped_numbers.py  numbers that left torch and return
source_line.py      the line of the user's code that is running
"""
