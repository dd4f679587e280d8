"""Word vectors: load and save files, look words up, and make an embedding whose known words are frozen.

`load` chooses a reader (text.py, binary.py, safetensors_file.py) and caches what it parsed. All of them return
`Vectors`: `Words`, found by hash, and a matrix. `cover`, `near`, `save` and `embedding` work on these, and on what
people have instead (sources.py): a path, a dict, the vectors of gensim.
"""

from frostline.vectors.coverage import Coverage, cover
from frostline.vectors.embedding import embedding
from frostline.vectors.load import load
from frostline.vectors.load_cache import CachedFile, cached_files, clear_cache
from frostline.vectors.nearest import near
from frostline.vectors.save import save
from frostline.vectors.table import Duplicates, Vectors
from frostline.vectors.words import Words

__all__ = [
    "CachedFile",
    "Coverage",
    "Duplicates",
    "Vectors",
    "Words",
    "cached_files",
    "clear_cache",
    "cover",
    "embedding",
    "load",
    "near",
    "save",
]
