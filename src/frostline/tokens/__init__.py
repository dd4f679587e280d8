"""New tokens for a language model: they get rows in every table over the vocabulary, and only these rows learn."""

from frostline.tokens.add_tokens import add_tokens

__all__ = ["add_tokens"]
