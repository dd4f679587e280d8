"""Word vectors: read them, look words up, and make an embedding in which known words stand and missing ones learn.

words.py      many words in one piece of memory, found by hash
table.py      Vectors: words and one row of numbers for each
files.py      load: what a file is, who reads it
text.py       GloVe, word2vec text, fastText .vec; numbers.py parses their lines
binary.py     word2vec .bin
tensors.py    save: .safetensors, our own form, opened by mapping
cache.py      files that were read once
coverage.py   cover: which words have a vector
nearest.py    near: the words whose vectors point the same way
layer.py      embedding: a plain nn.Embedding, partly frozen
"""

from frostline.vectors.coverage import Cover, cover
from frostline.vectors.embedding import embedding
from frostline.vectors.load import load
from frostline.vectors.nearest import near
from frostline.vectors.safetensors_file import save
from frostline.vectors.table import Vectors
from frostline.vectors.words import Words

__all__ = ["Cover", "Vectors", "Words", "cover", "embedding", "load", "near", "save"]
