"""The core: a tensor of which only chosen rows or entries learn, and the plan that says which.

`train_only` turns selections (everything, nothing, rows, entries) into a Plan and carries it out: a tensor that learns
in part becomes a PartialTensor, and its module's class a subclass of itself. `merge` undoes it.
"""

from frostline.partial.learned_file import load_learned, save_learned
from frostline.partial.mapped import mapped_embedding, open_raw, open_safetensors
from frostline.partial.model_tensors import MappedTable, State
from frostline.partial.module import new_partial_module
from frostline.partial.plan import Line, Plan
from frostline.partial.selections import All, Entries, Rows, Selection, entries, everything, nothing, rows
from frostline.partial.tensor import PartialTensor
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.memory import Memory
from frostline.partial.train_only import merge, train_only

__all__ = [
    "PartialTensor",
    "Plan",
    "Selection",
    "entries",
    "everything",
    "load_learned",
    "mapped_embedding",
    "merge",
    "nothing",
    "rows",
    "save_learned",
    "train_only",
]

# A pickle names each class and function by its module. Those below occur in pickles of models, plans and selections.
# They give this folder as their module, so that a pickle still loads after they have moved to another of its files.
for _pickled in (
    *(All, Entries, LearnedIndices, Line, MappedTable, Memory, Plan, Rows, State),
    *(new_partial_module, open_raw, open_safetensors),
):
    _pickled.__module__ = __name__
