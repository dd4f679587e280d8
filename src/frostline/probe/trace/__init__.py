"""Trace a forward pass: which parameters reach a tensor by value and by gradient, and where a gradient was lost.

trace.py            the mode that sees every torch function
node_lines.py       the line that made a node of autograd's graph, and where NaN or Inf came up
grad_mode.py        whether gradients flow now
none_returned.py    a custom Function's backward that returns no gradient
patches.py          what no mode sees, and other threads
provenance.py       what is known of one tensor, and of one storage
escaped_numbers.py  numbers that left torch and return
source_line.py      the line of the user's code that is running
"""
