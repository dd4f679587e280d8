"""What a run left behind, for people to look at: one page of HTML, or TensorBoard's files.

contents.py      everything that a run folder holds
tree.py          what learns: the modules of a model, coloured by verdict
charts.py        curves, movement, maps, as plotly figures
page.py          the page: one file, readable without a network
style.css        how it looks
page.js          draws the charts, follows the light and dark of the system
tensorboard.py   the same for TensorBoard
"""

from frostline.report.page import write_page
from frostline.report.tensorboard import write_tensorboard

__all__ = ["write_page", "write_tensorboard"]
