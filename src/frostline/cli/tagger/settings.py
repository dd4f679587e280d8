"""The flags of a `TaggerConfig`: one for each of its arguments, of the same name, in the groups of the help."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from frostline.errors import FrostlineError

if TYPE_CHECKING:
    from frostline.tagger import TaggerConfig

_GROUPS: dict[str, dict[str, tuple[type, str]]] = {
    "network": {
        "hidden": (int, "units of the LSTM in each direction (200)"),
        "dimension": (int, "numbers of a word's vector, with --no-vectors (100)"),
        "shape_width": (int, "width of what is learned of a word's shape, such as capitals; 0: nothing (16)"),
        "char_filters": (int, "read the characters of a word as well, by N filters over its bytes (0: do not)"),
        "forget_bias": (
            float,
            "first bias of the forget gate, and one bias a gate as in TensorFlow (torch's two biases)",
        ),
    },
    "dropout": {
        "dropout": (float, "fraction of the LSTM's inputs and outputs that is zeroed in training (0.2)"),
        "dropout_input": (float, "of the inputs alone, in place of --dropout"),
        "dropout_output": (float, "of the outputs alone, in place of --dropout"),
        "dropout_state": (float, "of the LSTM's recurrent weights (0)"),
        "unk_dropout": (float, "u: a word without a vector, seen n times, is with u / (u + n) (0.5)"),
    },
    "optimizer": {
        "batch_size": (int, "sentences of a step (16)"),
        "learning_rate": (float, "of AdamW, at the start (0.003)"),
        "final_rate": (float, "the fraction of it that is left at the end; it falls linearly (0.1)"),
        "weight_decay": (float, "of AdamW (0.01)"),
        "max_grad_norm": (float, "gradients are clipped to this norm; inf: never (1)"),
        "ema_decay": (float, "of the average of the weights, which is saved; 0: no average (0.998)"),
        "o_bias": (float, "subtracted from the logit of O after training: more is found, more of it wrong (0)"),
    },
}


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the flags; those that are not given stay None, so that --original can be told from them."""
    groups = {title: parser.add_argument_group(title) for title in _GROUPS}
    for title, flags in _GROUPS.items():
        for name, (kind, text) in flags.items():
            metavar = "N" if kind is int else "X"
            groups[title].add_argument(f"--{name.replace('_', '-')}", metavar=metavar, type=kind, help=text)
    groups["network"].add_argument(
        "--no-crf", dest="crf", action="store_false", default=None, help="score each token's tags alone"
    )
    groups["optimizer"].add_argument(
        "--by-sentence", action="store_true", default=None, help="average the loss by sentence, not by token"
    )
    groups["optimizer"].add_argument(
        "--adversarial",
        metavar="fgm:EPSILON",
        type=_fgm,
        help="train on each batch again, every word vector moved by EPSILON against the tagger (default: do not)",
    )
    parser.add_argument(
        "--original",
        action="store_true",
        help="the TensorFlow program that this one comes from: every row learns, a softmax for each token, no word "
        "shapes, forget bias 3, constant rate, no average, loss by sentence; flags that are given count more",
    )


def config(args: argparse.Namespace) -> TaggerConfig:
    """Return the configuration that the flags name.

    Raises:
        FrostlineError: A value is out of range.
    """
    from frostline.tagger import ORIGINAL, TaggerConfig

    names = [name for flags in _GROUPS.values() for name in flags] + ["crf", "by_sentence", "adversarial"]
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        return replace(ORIGINAL if args.original else TaggerConfig(), **given)
    except ValueError as error:
        raise FrostlineError(f"--{str(error).replace('_', '-', str(error).partition(':')[0].count('_'))}") from None


def _fgm(text: str) -> float:
    kind, _, number = text.partition(":")
    try:
        epsilon = float(number)
    except ValueError:
        epsilon = 0.0
    if kind != "fgm" or not 0 < epsilon < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected fgm: and a number above 0, such as fgm:0.5")
    return epsilon
