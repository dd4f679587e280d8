"""Word vectors: read them, look words up, and make an embedding in which known words stand and missing ones learn."""

from frostline.vectors.load import load
from frostline.vectors.table import Vectors
from frostline.vectors.tensors import save
from frostline.vectors.words import Words

__all__ = ["Vectors", "Words", "load", "save"]
