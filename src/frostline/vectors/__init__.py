"""Word vectors: load and save files, look words up, and make an embedding whose known words are frozen.

`load` chooses a reader (text.py, binary.py, safetensors_file.py) and caches what it parsed. All of them return
`Vectors`: `Words`, found by hash, and a matrix. `cover`, `near` and `embedding` work on these.
"""

from frostline.vectors.coverage import Coverage, cover
from frostline.vectors.embedding import embedding
from frostline.vectors.load import load
from frostline.vectors.nearest import near
from frostline.vectors.safetensors_file import save
from frostline.vectors.table import Vectors
from frostline.vectors.words import Words

__all__ = ["Coverage", "Vectors", "Words", "cover", "embedding", "load", "near", "save"]
