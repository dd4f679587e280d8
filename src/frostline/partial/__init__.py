"""The core: a tensor of which only chosen rows or entries learn, and the plan that says which.

layout.py       where the learned part belongs in the frozen one
tensor.py       PartialTensor: both parts behind one tensor
lookups.py      embedding, embedding_bag, linear without joining the parts
module.py       a module that owns one: same object, same keys
selections.py   everything, nothing, rows, entries
plan.py         what a plan says and prints
carry.py        an optimizer goes on under a new plan
transfer.py     state of what learned of a tensor -> of what learns of it now
fresh.py        the state that an optimizer begins with
choose.py       names and patterns -> a plan carried out; merge
files.py        what was learned, saved and loaded
watch.py        an optimizer that no longer drives what learns is told so
"""

from frostline.partial import lookups as lookups  # fills the table that tensor.py asks
from frostline.partial.learned_file import load_learned, save_learned
from frostline.partial.mapped import mapped_embedding
from frostline.partial.plan import Plan
from frostline.partial.selections import Selection, entries, everything, nothing, rows
from frostline.partial.tensor import PartialTensor
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
