"""Adversarial text: what small change of the input misleads a model most, and training against it.

perturb.py   move looked-up vectors: FGM and PGD
loss.py      train against moved vectors: FGM, PGD and VAT in one line of a training step
swap.py      exchange words: HotFlip with a beam, every candidate re-checked exactly
allowed.py   which words may stand for which
attack.py    attack many sentences of a model, and count what it cost the model

No attack changes a later bit of a training run: all passes go through `frostline.probe`.
"""

from frostline.adversarial.allowed import Allowed
from frostline.adversarial.loss import loss
from frostline.adversarial.perturb import Perturbation, applied, perturb
from frostline.adversarial.swap import Swap, swap

__all__ = ["Allowed", "Perturbation", "Swap", "applied", "loss", "perturb", "swap"]
