"""One tensor of which chosen elements learn: its two parts, the memory they share, and what torch does with it.

Nothing here knows modules or plans: those are in the folder above.
"""

from frostline.partial.tensor import attributes as attributes  # registers its functions with PartialTensor, as do
from frostline.partial.tensor import grouped as grouped  # these, and lookups and products, which they need
from frostline.partial.tensor import views as views
from frostline.partial.tensor.dispatch import PartialView, is_traced, plain, view
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.memory import Memory
from frostline.partial.tensor.partial_tensor import PartialTensor, partial_tensor

__all__ = ["LearnedIndices", "Memory", "PartialTensor", "PartialView", "is_traced", "partial_tensor", "plain", "view"]
