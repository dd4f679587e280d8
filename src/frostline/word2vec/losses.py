"""Losses over sampled candidates, by the formulas of TensorFlow: candidates and expected counts are arguments.

Letters used for shapes in this file:
    V  rows of the output table    D  dimension
    B  examples                    N  candidates, shared by all examples

TensorFlow's functions draw the candidates; here the caller does, so that every number can be checked by hand. The
expected count of a candidate is how often a draw of N holds it: N x its probability if draws are independent.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import ShapeError


def nce_loss(
    weights: Tensor,
    biases: Tensor | None,
    labels: Tensor,
    inputs: Tensor,
    sampled: Tensor,
    true_expected: Tensor,
    sampled_expected: Tensor,
    remove_accidental_hits: bool = False,
) -> Tensor:
    """Return the noise-contrastive estimation loss of each example.

    Args:
        weights: The output table, shape (V, D): a tensor or a partial tensor.
        biases: Shape (V,). None: zeros.
        labels: The true classes, int64, shape (B,).
        inputs: Shape (B, D).
        sampled: The candidates, int64, shape (N,).
        true_expected: Expected count of each label, shape (B,), above 0.
        sampled_expected: Expected count of each candidate, shape (N,), above 0.
        remove_accidental_hits: Leave out candidates that are the label of the example.

    Returns:
        Shape (B,): of a logit x = input . weight + bias - log(expected count), -log sigmoid(x) of the label plus the
        sum of -log sigmoid(-x) of the candidates.

    Raises:
        ShapeError: The shapes do not fit each other.

    Cost: O((B + N) D + B N D).

    Example:
        >>> table, ids = torch.zeros(4, 2), torch.tensor([1])
        >>> ones = torch.ones(1)
        >>> nce_loss(table, None, ids, torch.ones(1, 2), torch.tensor([3]), ones, ones)  # 2 log 2
        tensor([1.3863])

    Source: TensorFlow's `tf.nn.nce_loss`.
    """
    true, others = _logits(weights, biases, labels, inputs, sampled, true_expected, sampled_expected)
    if remove_accidental_hits:
        others = others.masked_fill(_hits(labels, sampled), -torch.inf)
    return F.softplus(-true) + F.softplus(others).sum(dim=1)


def sampled_softmax_loss(
    weights: Tensor,
    biases: Tensor | None,
    labels: Tensor,
    inputs: Tensor,
    sampled: Tensor,
    true_expected: Tensor,
    sampled_expected: Tensor,
    remove_accidental_hits: bool = True,
) -> Tensor:
    """Return the cross entropy of each example among its label and the candidates.

    Args:
        weights: The output table, shape (V, D): a tensor or a partial tensor.
        biases: Shape (V,). None: zeros.
        labels: The true classes, int64, shape (B,).
        inputs: Shape (B, D).
        sampled: The candidates, int64, shape (N,).
        true_expected: Expected count of each label, shape (B,), above 0.
        sampled_expected: Expected count of each candidate, shape (N,), above 0.
        remove_accidental_hits: Leave out candidates that are the label of the example.

    Returns:
        Shape (B,): log of the sum of exp(x) over label and candidates, minus x of the label, with the logits
        x = input . weight + bias - log(expected count).

    Raises:
        ShapeError: The shapes do not fit each other.

    Cost: O((B + N) D + B N D).

    Example:
        >>> table, ids = torch.zeros(4, 2), torch.tensor([1])
        >>> candidates, one, ones = torch.tensor([3, 0]), torch.ones(1), torch.ones(2)
        >>> sampled_softmax_loss(table, None, ids, torch.ones(1, 2), candidates, one, ones)  # log 3
        tensor([1.0986])

    Source: TensorFlow's `tf.nn.sampled_softmax_loss`.
    """
    true, others = _logits(weights, biases, labels, inputs, sampled, true_expected, sampled_expected)
    if remove_accidental_hits:
        others = others.masked_fill(_hits(labels, sampled), -torch.inf)
    return torch.logsumexp(torch.cat([true.unsqueeze(1), others], dim=1), dim=1) - true


def _logits(
    weights: Tensor,
    biases: Tensor | None,
    labels: Tensor,
    inputs: Tensor,
    sampled: Tensor,
    true_expected: Tensor,
    sampled_expected: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the logits of the labels, (B,), and of the candidates, (B, N)."""
    examples, candidates = (len(inputs),), sampled.shape
    for name, tensor, shape in (
        ("weights", weights, (weights.shape[0], inputs.shape[-1])),
        ("labels", labels, examples),
        ("true_expected", true_expected, examples),
        ("sampled", sampled, (sampled.numel(),)),
        ("sampled_expected", sampled_expected, candidates),
    ):
        if tuple(tensor.shape) != tuple(shape):
            raise ShapeError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}.")
    true = (inputs * F.embedding(labels, weights)).sum(dim=1) - true_expected.log()
    others = inputs @ F.embedding(sampled, weights).T - sampled_expected.log()
    if biases is not None:
        true, others = true + biases[labels], others + biases[sampled]
    return true, others


def _hits(labels: Tensor, sampled: Tensor) -> Tensor:
    return labels.unsqueeze(1) == sampled
