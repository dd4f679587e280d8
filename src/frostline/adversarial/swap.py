"""Exchange words so that the loss rises most: HotFlip with true gradients, a beam, and exact checks.

Letters used for shapes in this file:
    B  sentences       T  tokens       D  width of a vector       C  candidates, the ids that may be chosen
    N  rows that are computed together, each some sentence with some words exchanged
    P  positions of these rows at which a word may be exchanged

The idea: to first order, putting word w for the word v at a position changes the loss by gradient * (vector(w) -
vector(v)), so one product scores all candidates at all positions. The best are tried, all together in one batch; of
what is found, the best are the beam for the next exchange.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from frostline.adversarial.allowed import Allowed, top_k
from frostline.errors import ProbeError
from frostline.probe.gradients import gradients
from frostline.probe.outputs import Output, described, place
from frostline.probe.restore.reachable import reachable
from frostline.probe.restore.restored import restored

_ELEMENTS = 1 << 22  # of a matrix of positions x candidates in memory at a time

LossOfRows = Callable[[Tensor, Tensor], Tensor]


class Swap(NamedTuple):
    """What `swap` returns.

    Attributes:
        ids: The sentences with words exchanged, int64, shape (B, T); where nothing raises the loss, as they were.
        losses: The loss of each, shape (B,), as a plain forward pass in eval mode gives it.
        passes: How many rows were computed for each sentence, int64, shape (B,); one with a gradient counts as one.
    """

    ids: Tensor
    losses: Tensor
    passes: Tensor


def swap(
    loss_fn: LossOfRows,
    module: Output,
    ids: Tensor,
    *,
    allowed: Tensor | Allowed,
    protect: Tensor | None = None,
    max_swaps: int = 2,
    k: int | None = 32,
    beam: int = 4,
    model: nn.Module | None = None,
    generators: Iterable[Any] = (),
) -> Swap:
    """Exchange up to `max_swaps` words of each sentence so that its loss rises most.

    Nothing is modified, as with `fl.gradients`. All passes are in eval mode, since losses of rows with different
    dropout masks cannot be compared; the modes are restored.

    Args:
        loss_fn: `loss_fn(ids, which)` takes ids of any number of sentences, (N, T), and the sentence that each row came
            from, int64, (N,), so that labels and lengths can follow (`labels[which]`). Returns a loss a row, (N,).
        module: The module that looks ids up, such as `model.embed`: at all its calls, which together look up `ids`, or
            at one, `(module, 0)`.
        ids: The sentences, whole numbers, shape (B, T), padded to one length.
        allowed: Ids that may be chosen, in a tensor, or an `Allowed`.
        protect: Bool, shape (B, T): True where the word stays. Padding (`module.padding_idx`) and the stop list of an
            `Allowed` always stay, and are never chosen.
        max_swaps: The most words that are exchanged in a sentence, 1 or more.
        k: For each sentence and exchange, how many replacements, those that score best over all positions and the
            beam, are checked exactly. None: all that are allowed.
        beam: How many of the best go on to the next exchange, 1 or more.
        model: As for `fl.gradients`.
        generators: As for `fl.gradients`.

    Returns:
        A `Swap`. A sentence without an allowed exchange, or in which none raises the loss, comes back as it was.

    Raises:
        ProbeError: The module does not look up `ids`, or is a mark; the losses are not (N,) or not finite.
        TypeError, ValueError: An argument is not as above; an id is outside the table.

    Cost: for each exchange a forward and backward pass over at most `beam` rows for each sentence, a product of their
        gradients with the candidates' vectors, and a forward pass over at most `k` rows for each sentence.

    Example:
        >>> import frostline as fl
        >>> embed = nn.Embedding(4, 1, _weight=torch.tensor([[0.0], [1.0], [2.0], [5.0]]))
        >>> def loss_fn(ids, which):
        ...     return embed(ids).sum((1, 2))
        >>> found = fl.adversarial.swap(loss_fn, embed, torch.tensor([[1, 1]]), allowed=torch.tensor([2, 3]))
        >>> found.ids, found.losses
        (tensor([[3, 3]]), tensor([10.]))

    Source: HotFlip, Ebrahimi et al. (2018).
    """
    _check(ids, protect, max_swaps, k, beam)
    search = _Search(loss_fn, module, allowed if isinstance(allowed, Allowed) else Allowed(allowed), model, generators)
    with search.undisturbed():
        return search.run(ids.to(torch.int64), protect, max_swaps, k, beam)


class _Search:
    def __init__(
        self,
        loss_fn: LossOfRows,
        module: Output,
        allowed: Allowed,
        model: nn.Module | None,
        generators: Iterable[Any],
    ) -> None:
        where, self._call = place(module)
        if not isinstance(where, nn.Module):
            raise ProbeError(
                f"{described(module)}: a swap needs the module that looks words up, to know their vectors."
            )
        self._loss_fn, self._allowed, self._model, self._generators = loss_fn, allowed, model, list(generators)
        self._module: nn.Module = where
        self._name = described(module)
        self._modules = [where] if model is None else [where, model]

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Evaluate in the block, and restore everything after it."""
        modules = [*self._modules, *reachable(self._loss_fn).modules]
        with restored(modules, function=self._loss_fn, generators=self._generators), _uncached_autocast():
            for module in {each for root in modules for each in root.modules()}:
                module.training = False
            yield

    def run(self, ids: Tensor, protect: Tensor | None, max_swaps: int, k: int | None, beam: int) -> Swap:
        """Return the result; see `swap`."""
        padding = getattr(self._module, "padding_idx", None)
        never = torch.cat([self._allowed.stop, self._allowed.stop.new_tensor([] if padding is None else [padding])])
        never = never.to(ids.device)
        size = getattr(self._module, "num_embeddings", None)
        if not isinstance(size, int):
            size = len(self._module.weight)  # type: ignore[arg-type]
        self._candidates = self._allowed.candidates(size, never)  # (C,)
        self._table = self._vectors(self._candidates)  # (C, D)
        free = ~torch.isin(ids, never)  # (B, T) a word that may be exchanged
        if protect is not None:
            free &= ~protect.to(ids.device)
        self._words = ids[free].unique()
        self._of_words = self._vectors(self._words)
        if self._allowed.nearest is not None:
            self._nearest = self._allowed.nearest_candidates(self._words, self._of_words, self._candidates, self._table)

        which = torch.arange(len(ids), device=ids.device)
        losses = self._losses(ids, which)
        best = Swap(ids.clone(), losses, torch.ones_like(which))
        rows = _Rows(ids, which, free)
        for _ in range(max_swaps):
            rows = rows.at(rows.free.any(1))
            if not len(rows.which) or not len(self._candidates):
                break
            best.passes.index_add_(0, rows.which, torch.ones_like(rows.which))
            rows = self._best_swaps(rows, k)
            if not len(rows.which):
                break
            best.passes.index_add_(0, rows.which, torch.ones_like(rows.which))
            losses = self._losses(rows.ids, rows.which)
            rows, losses = _top(rows, losses, beam)
            first = torch.ones_like(rows.which, dtype=torch.bool)  # the best row of each sentence
            first[1:] = rows.which[1:] != rows.which[:-1]
            better = first & (losses > best.losses[rows.which])
            best.ids[rows.which[better]] = rows.ids[better]
            best.losses[rows.which[better]] = losses[better]
        return best

    def _best_swaps(self, rows: _Rows, k: int | None) -> _Rows:
        """Return the rows with one word more exchanged that score best to first order, at most `k` a sentence."""
        row, position = rows.free.nonzero(as_tuple=True)  # (P,), (P,)
        words = torch.searchsorted(self._words, rows.ids[row, position])  # (P,)
        gradient = self._gradient(rows)[row, position]  # (P, D)
        width = self._table.shape[0] if self._allowed.nearest is None else self._nearest[0].shape[1]
        most = width if k is None else min(k, width)
        scores, chosen = [], []
        for part in torch.arange(len(words), device=words.device).split(max(1, _ELEMENTS // width)):
            score, index = self._first_order(words[part], gradient[part])
            values, indices = top_k(score, most)
            base = (gradient[part] * self._of_words[words[part]]).sum(1, keepdim=True)
            scores.append((values - base).flatten())
            chosen.append((indices if index is None else index.gather(1, indices)).flatten())
        score, candidate = torch.cat(scores), torch.cat(chosen)
        at = torch.arange(len(words), device=words.device).repeat_interleave(most)
        possible = score > -torch.inf
        score, candidate, at = score[possible], candidate[possible], at[possible]
        kept = _best_of_each(rows.which[row[at]], score, len(at) if k is None else k)
        candidate, at = candidate[kept], at[kept]
        swapped = rows.at(row[at])
        here = torch.arange(len(at), device=at.device)
        swapped.ids[here, position[at]] = self._candidates[candidate]
        swapped.free[here, position[at]] = False
        return swapped.distinct()

    def _first_order(self, words: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return gradient * vector of each replacement of each word, -inf where not allowed, and their indices.

        Args:
            words: Indices into the words of the batch, shape (P,).
            gradient: Of the loss at their vectors, shape (P, D).
        """
        if self._allowed.nearest is None:
            score = gradient @ self._table.T  # (P, C)
            return self._allowed.exclude_(score, self._words[words], self._candidates), None
        index, exists = self._nearest[0][words], self._nearest[1][words]
        score = (self._table[index] @ gradient[:, :, None])[:, :, 0]
        return score.masked_fill(~exists, -torch.inf), index

    def _losses(self, ids: Tensor, which: Tensor) -> Tensor:
        """Return the loss of each row by a plain forward pass."""
        with torch.no_grad(), self._restored():
            return self._checked(self._loss_fn(ids, which), which).detach().clone()

    def _gradient(self, rows: _Rows) -> Tensor:
        """Return the gradient of the loss of each row at its looked-up vectors, shape (N, T, D)."""
        looked_up: list[Any] = []

        def total() -> Tensor:
            if rows.ids.is_cuda:  # cuDNN computes the gradient of a recurrent layer in training mode alone
                for root in (*self._modules, *reachable(self._loss_fn).modules):
                    for layer in root.modules():
                        if isinstance(layer, nn.RNNBase):
                            layer.training, layer.dropout = True, 0.0
            return self._checked(self._loss_fn(rows.ids, rows.which), rows.which).sum()

        def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            looked_up.append(next(iter((*inputs, *named.values())), None))

        target: Output = self._module if self._call is None else (self._module, self._call)
        with self._module.register_forward_pre_hook(note, with_kwargs=True):
            (found,) = gradients(total, [target], model=self._model, generators=self._generators)
        calls = found if isinstance(found, tuple) else (found,)
        inputs = looked_up[: len(calls)] if self._call is None else [looked_up[self._call]]
        if (gradient := _together(rows.ids, inputs, calls)) is not None:
            return gradient.float()
        raise ProbeError(
            f"{self._name}: it looks up other ids than those that loss_fn is given, or in another order, so what is "
            "where is not known. Pass the ids as the module gets them, or name one of its calls: (module, 0)."
        )

    def _vectors(self, ids: Tensor) -> Tensor:
        """Return what the module looks up for each id, float32, shape (len(ids), D)."""
        with torch.no_grad(), self._restored():
            found = self._module(ids[None])
        if not isinstance(found, Tensor) or found.shape[:2] != (1, len(ids)) or found.dim() != 3:
            raise ProbeError(f"{self._name}: it does not return one vector for each id, so words cannot be compared.")
        return found[0].float()

    def _restored(self) -> contextlib.AbstractContextManager[object]:
        return restored(self._modules, function=self._loss_fn, generators=self._generators)

    def _checked(self, losses: Any, which: Tensor) -> Tensor:
        if not isinstance(losses, Tensor) or losses.shape != which.shape:
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ProbeError(f"loss_fn: expected a loss for each of {len(which)} rows, got {shape}. Do not reduce it.")
        if not losses.isfinite().all():
            raise ProbeError("loss_fn: a loss is not finite, so swaps cannot be compared.")
        return losses


class _Rows(NamedTuple):
    """Sentences with some words exchanged: ids (N, T), the sentence of each (N,), and where a word is free (N, T)."""

    ids: Tensor
    which: Tensor
    free: Tensor

    def at(self, index: Tensor) -> _Rows:
        return _Rows(self.ids[index], self.which[index], self.free[index])

    def distinct(self) -> _Rows:
        """Return each row once: the same words can be exchanged in any order."""
        _, inverse = torch.cat([self.which[:, None], self.ids], 1).unique(dim=0, return_inverse=True)
        order = inverse.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = inverse[order][1:] != inverse[order][:-1]
        return self.at(order[first])


def _together(ids: Tensor, inputs: list[Any], gradients: tuple[Tensor, ...]) -> Tensor | None:
    """Return the gradient at `ids`, (N, T, D), from calls that look up some positions or rows each, else None."""
    if not all(isinstance(each, Tensor) and each.dim() for each in inputs):
        return None
    width = gradients[0].shape[-1]
    if all(len(each) == len(ids) for each in inputs):
        looked_up = torch.cat([each.reshape(len(ids), -1) for each in inputs], 1)
        gradient = torch.cat([each.reshape(len(ids), -1, width) for each in gradients], 1)
    else:
        looked_up = torch.cat([each.flatten() for each in inputs])
        gradient = torch.cat([each.reshape(-1, width) for each in gradients])
    if looked_up.numel() != ids.numel() or not bool((looked_up.flatten() == ids.flatten()).all()):
        return None
    return gradient.reshape(*ids.shape, width)


def _top(rows: _Rows, losses: Tensor, count: int) -> tuple[_Rows, Tensor]:
    """Return the `count` rows of the highest loss of each sentence, sentence by sentence, the highest first."""
    index = _best_of_each(rows.which, losses, count)
    return rows.at(index), losses[index]


def _best_of_each(groups: Tensor, scores: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest scores of each group, group by group, the highest first.

    Example:
        >>> _best_of_each(torch.tensor([1, 0, 1, 1]), torch.tensor([5.0, 1.0, 7.0, 6.0]), 2)
        tensor([1, 2, 3])
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    _, sizes = groups[order].unique_consecutive(return_counts=True)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order[torch.arange(len(order), device=order.device) - starts < count]


@contextlib.contextmanager
def _uncached_autocast() -> Iterator[None]:
    """Let autocast cache no weights in the block: those cast without gradient would be used in the training step."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _check(ids: Tensor, protect: Tensor | None, max_swaps: int, k: int | None, beam: int) -> None:
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
        got = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"ids: expected whole numbers of shape (sentences, tokens), got {got}.")
    if protect is not None and (protect.dtype != torch.bool or protect.shape != ids.shape):
        raise ValueError(
            f"protect: expected bool of shape {tuple(ids.shape)}, got {protect.dtype} of {tuple(protect.shape)}."
        )
    for name, value in (("max_swaps", max_swaps), ("beam", beam), ("k", 1 if k is None else k)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number, 1 or more, got {value}.")
