"""The gradient of what learns alone: views, products and lookups of a partial tensor, and their memory.

One oracle: a plain tensor used in the same way, whose gradient is masked. cases.py has what these files share.
"""
