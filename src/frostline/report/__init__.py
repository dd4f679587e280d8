"""Reports drawn from a run folder: one page of HTML, or files for TensorBoard.

contents.py      read everything in a run folder
tree.py          what learns: the modules of a model, coloured by verdict
charts.py        curves, maps, confusion, as plotly figures
sections.py      the sections of the page
page.py          the page: one file, readable without a network (style.css, page.js)
tensorboard.py   the same for TensorBoard
"""

from frostline.report.page import write_page
from frostline.report.tensorboard import write_tensorboard

__all__ = ["write_page", "write_tensorboard"]
