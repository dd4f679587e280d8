"""New tokens for a language model: they get rows in every table over the vocabulary, and only these rows learn."""

from frostline.tokens.add_tokens import add_tokens
from frostline.tokens.peft_folder import export_peft

__all__ = ["add_tokens", "export_peft"]
