"""Swaps of words against slow oracles: every swap tried, finite differences, plain forward passes."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.adversarial import Allowed, Swap, swap
from frostline.adversarial.allowed import top_k

V, D, K = 9, 4, 3
PAD, UNKNOWN = 0, 1
IDS = torch.tensor([[2, 3, 4, 8], [5, 6, 0, 0], [7, 0, 0, 0], [1, 2, 2, 0]])
LENGTHS, LABELS = (IDS != PAD).sum(1), torch.tensor([0, 1, 2, 1])
WORDS = torch.tensor([2, 3, 4, 5, 6, 7])


class Net(nn.Module):
    """Reads a sentence in order, so that which word is where matters; dropout and BatchNorm would disturb an attack."""

    def __init__(self, double: bool = False, scaled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = Scaled(V, D, padding_idx=PAD) if scaled else nn.Embedding(V, D, padding_idx=PAD)
        self.lstm = nn.LSTM(D, 8, batch_first=True)
        self.drop, self.norm, self.head = nn.Dropout(0.4), nn.BatchNorm1d(8), nn.Linear(8, K)
        if double:
            self.double()

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        states = self.lstm(self.embed(ids))[0]
        last = states[torch.arange(len(ids)), lengths - 1]
        return self.head(self.norm(self.drop(last)))


class Scaled(nn.Embedding):
    """As Gemma's: what is looked up is not the row itself."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3.0


def loss_of(model: Net) -> Any:
    def loss_fn(ids: Tensor, which: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(ids, LENGTHS[which]), LABELS[which], reduction="none")

    return loss_fn


def plain(model: Net, ids: Tensor, which: int) -> float:
    """The loss of one sentence by a plain forward pass in eval mode."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        return loss_of(twin)(ids[None], torch.tensor([which])).item()


def all_swaps(ids: Tensor, words: list[int], swaps: int, stays: Any = (PAD, UNKNOWN)) -> list[Tensor]:
    """Every sentence that differs from `ids` in at most `swaps` positions."""
    free = [position for position, word in enumerate(ids.tolist()) if word not in stays]
    found = [ids]
    for positions in itertools.combinations(free, min(swaps, len(free))):
        for chosen in itertools.product(*([int(ids[position]), *words] for position in positions)):
            other = ids.clone()
            other[list(positions)] = torch.tensor(chosen)
            found.append(other)
    return found


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("partial", [False, True])
def test_one_swap_with_all_candidates_equals_trying_every_swap(scaled: bool, partial: bool) -> None:
    model = Net(double=True, scaled=scaled)
    if partial:
        fl.train_only(model, {"*": fl.everything, "embed.weight": fl.rows([2, 5, 7])})
    allowed = Allowed(WORDS, stop=[UNKNOWN])
    found = swap(loss_of(model), model.embed, IDS, allowed=allowed, max_swaps=1, k=None)
    for which, ids in enumerate(IDS):
        losses = {tuple(each.tolist()): plain(model, each, which) for each in all_swaps(ids, WORDS.tolist(), 1)}
        best = max(losses, key=losses.__getitem__)
        assert found.ids[which].tolist() == list(best)
        assert found.losses[which].item() == pytest.approx(losses[best], rel=1e-12)
    assert (found.ids != IDS).sum(1).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("swaps", [2, 3])
def test_a_wide_beam_finds_the_best_of_all_combinations(swaps: int) -> None:
    model = Net(double=True)
    words = [2, 5, 7]
    allowed = Allowed(torch.tensor(words), stop=[UNKNOWN])
    found = swap(loss_of(model), model.embed, IDS, allowed=allowed, max_swaps=swaps, k=None, beam=1000)
    for which, ids in enumerate(IDS):
        best = max(plain(model, each, which) for each in all_swaps(ids, words, swaps))
        assert found.losses[which].item() == pytest.approx(best, rel=1e-12)
    assert (found.ids != IDS).sum(1).max() >= 2


def test_the_losses_are_those_of_a_plain_forward_pass_for_every_candidate() -> None:
    model = Net().train()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    inner = loss_of(model)

    def loss_fn(ids: Tensor, which: Tensor) -> Tensor:
        losses = inner(ids, which)
        if not torch.is_grad_enabled():
            seen.append((ids.clone(), which.clone(), losses.clone()))
        return losses

    found = swap(loss_fn, model.embed, IDS, allowed=WORDS, max_swaps=2, k=5)
    assert len(seen) == 3  # as it was, and two swaps
    for ids, which, losses in seen:
        for row, sentence, loss in zip(ids, which.tolist(), losses.tolist(), strict=True):
            assert plain(model, row, sentence) == pytest.approx(loss, rel=1e-5)
    assert all(plain(model, row, i) == pytest.approx(loss.item(), rel=1e-5)
               for i, (row, loss) in enumerate(zip(found.ids, found.losses, strict=True)))  # fmt: skip
    best = torch.stack([torch.cat([each[2][each[1] == i] for each in seen]).max() for i in range(4)])
    assert torch.equal(found.losses, best)


def test_first_order_scores_equal_finite_differences() -> None:
    """With k=1 the swap of the highest score is tried; the score of each is its slope by finite differences."""
    model = Net(double=True).eval()
    table = model.embed.weight.detach().clone()
    for which in range(4):
        ids = IDS[which]
        slopes = {}
        for position, word in enumerate(ids.tolist()):
            for other in WORDS.tolist() if word not in (PAD, UNKNOWN) else ():
                if other == word:
                    continue
                step = 1e-6 * (table[other] - table[word])

                def moved(sign: float, position: int = position, step: Tensor = step) -> float:
                    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                        output = output.clone()
                        output[0, position] += sign * step
                        return output

                    with model.embed.register_forward_hook(add), torch.no_grad():
                        return loss_of(model)(ids[None], torch.tensor([which])).item()  # noqa: B023

                slopes[position, other] = (moved(1) - moved(-1)) / 2e-6
        order = sorted(slopes, key=slopes.__getitem__, reverse=True)
        tried: list[tuple[int, int]] = []
        inner = loss_of(model)

        def loss_fn(rows: Tensor, of: Tensor, which: int = which, ids: Tensor = ids) -> Tensor:
            for row in rows if not torch.is_grad_enabled() else ():
                tried.extend((int(p), int(row[p])) for p in (row != ids).nonzero()[:, 0])  # noqa: B023
            return inner(rows, torch.full_like(of, which))  # noqa: B023

        for k in (1, 3, 7):
            tried.clear()
            allowed = Allowed(WORDS, stop=[UNKNOWN])
            swap(loss_fn, model.embed, ids[None], allowed=allowed, max_swaps=1, k=k)
            assert set(tried) == set(order[:k])


def test_padding_unknown_and_protected_words_stay_and_are_never_chosen() -> None:
    model = Net()
    protect = torch.zeros_like(IDS, dtype=torch.bool)
    protect[0, :2] = protect[1] = True
    allowed = Allowed(torch.arange(V), stop=[UNKNOWN])
    seen: list[Tensor] = []
    inner = loss_of(model)

    def loss_fn(ids: Tensor, which: Tensor) -> Tensor:
        seen.append(torch.cat([which[:, None], ids], 1))
        return inner(ids, which)

    found = swap(loss_fn, model.embed, IDS, allowed=allowed, protect=protect, max_swaps=3, k=50)
    rows = torch.cat(seen)
    before = IDS[rows[:, 0]]
    stays = protect[rows[:, 0]] | (before == PAD) | (before == UNKNOWN)
    changed = rows[:, 1:] != before
    assert not (changed & stays).any()
    assert not torch.isin(rows[:, 1:][changed], torch.tensor([PAD, UNKNOWN])).any()
    assert changed.any()
    assert torch.equal(found.ids[1], IDS[1])  # nothing is free
    assert found.passes[1] == 1
    assert found.losses[1].item() == pytest.approx(plain(model, IDS[1], 1), rel=1e-5)


def test_only_the_nearest_of_the_same_group_are_chosen() -> None:
    model = Net()
    groups = torch.arange(V) % 2
    vectors = nn.functional.normalize(model.embed.weight.detach(), dim=1)
    choices = {}
    for word in range(V):
        others = [w for w in WORDS.tolist() if w != word and w % 2 == word % 2]
        choices[word] = sorted(others, key=lambda w: -(vectors[w] @ vectors[word]).item())[:2]
    tried = set()
    inner = loss_of(model)

    def loss_fn(ids: Tensor, which: Tensor) -> Tensor:
        row, position = (ids != IDS[which]).nonzero(as_tuple=True)
        tried.update(zip(IDS[which][row, position].tolist(), ids[row, position].tolist(), strict=True))
        return inner(ids, which)

    swap(loss_fn, model.embed, IDS, allowed=Allowed(WORDS, nearest=2, groups=groups), max_swaps=1, k=None)
    expected = {(word, other) for word in IDS.unique().tolist() if word != PAD for other in choices[word]}
    assert tried == expected


def test_calls_that_look_up_one_position_each_are_attacked_as_one_call() -> None:
    table = nn.Embedding(V, D, padding_idx=PAD)
    head = nn.Linear(D, K)

    def loss_fn(together: bool) -> Any:
        def losses(ids: Tensor, which: Tensor) -> Tensor:
            hidden = table(ids).sum(1) if together else sum(table(ids[:, j]) for j in range(ids.shape[1]))
            return nn.functional.cross_entropy(head(hidden), LABELS[which], reduction="none")

        return losses

    one, several = (swap(loss_fn(both), table, IDS, allowed=WORDS, k=4) for both in (True, False))
    assert torch.equal(one.ids, several.ids)
    assert (one.ids != IDS).any()

    def twice(ids: Tensor, which: Tensor) -> Tensor:  # an encoder and a decoder that share a table
        return loss_fn(True)(ids, which) + table(torch.full_like(ids, 2)).sum((1, 2)) * 0

    with pytest.raises(fl.ProbeError, match="it looks up other ids than those"):
        swap(twice, table, IDS, allowed=WORDS)
    assert torch.equal(swap(twice, (table, 0), IDS, allowed=WORDS, k=4).ids, one.ids)


def test_nothing_is_modified_and_modes_are_restored() -> None:
    model = Net().train()
    model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    drawn, ids = torch.get_rng_state(), IDS.clone()
    found = swap(loss_of(model), model.embed, IDS, allowed=WORDS)
    assert (found.losses > 0).all()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(IDS, ids)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.embed._forward_pre_hooks


def test_a_step_under_autocast_keeps_its_gradient_after_an_attack() -> None:
    model = Net()
    with torch.autocast("cpu", torch.bfloat16):
        swap(loss_of(model), model.embed, IDS, allowed=WORDS, k=4)
        loss_of(model)(IDS, torch.arange(4)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_rows_are_counted_and_no_row_is_tried_twice() -> None:
    model = Net()
    rows: list[Tensor] = []
    inner = loss_of(model)

    def loss_fn(ids: Tensor, which: Tensor) -> Tensor:
        rows.append(torch.cat([which[:, None], ids], 1))
        return inner(ids, which)

    found = swap(loss_fn, model.embed, IDS, allowed=WORDS, max_swaps=3, k=6, beam=3)
    assert found.passes.tolist() == torch.cat(rows)[:, 0].bincount().tolist()
    for batch in rows:
        assert len(batch.unique(dim=0)) == len(batch)


def test_an_empty_batch_and_no_candidates_come_back() -> None:
    model = Net()
    empty = swap(loss_of(model), model.embed, IDS[:0], allowed=WORDS)
    assert [part.shape for part in empty] == [(0, 4), (0,), (0,)]
    none = swap(loss_of(model), model.embed, IDS, allowed=torch.tensor([], dtype=torch.int64))
    assert isinstance(none, Swap)
    assert torch.equal(none.ids, IDS)
    same = swap(loss_of(model), model.embed, IDS, allowed=Allowed(nearest=1, groups=range(V)))
    assert torch.equal(same.ids, IDS)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (
            {"allowed": torch.tensor([2, V])},
            ValueError,
            "allowed: id 9 is outside the table, whose ids run from 0 to 8.",
        ),
        ({"allowed": torch.tensor([-1])}, ValueError, "allowed: id -1 is outside the table"),
        ({"allowed": torch.ones(V).bool()}, TypeError, "ids: expected whole numbers, got torch.bool."),
        ({"allowed": WORDS, "max_swaps": 0}, ValueError, "max_swaps: expected a whole number, 1 or more, got 0."),
        ({"allowed": WORDS, "k": 0}, ValueError, "k: expected a whole number, 1 or more, got 0."),
        ({"allowed": WORDS, "protect": IDS}, ValueError, "protect: expected bool of shape (4, 4), got torch.int64"),
    ],
)
def test_bad_arguments_are_named(options: Any, error: type[Exception], says: str) -> None:
    model = Net()
    with pytest.raises(error, match=re.escape(says)):
        swap(loss_of(model), model.embed, IDS, **options)


def test_losses_that_are_reduced_or_not_finite_are_errors() -> None:
    model = Net()
    with pytest.raises(fl.ProbeError, match=re.escape("expected a loss for each of 4 rows, got (). Do not reduce it")):
        swap(lambda ids, which: loss_of(model)(ids, which).mean(), model.embed, IDS, allowed=WORDS)
    with pytest.raises(fl.ProbeError, match="a loss is not finite"):
        swap(lambda ids, which: loss_of(model)(ids, which) / 0, model.embed, IDS, allowed=WORDS)
    with pytest.raises(fl.ProbeError, match="a swap needs the module that looks words up"):
        swap(loss_of(model), "hidden", IDS, allowed=WORDS)
    with pytest.raises(ValueError, match=re.escape("groups: 2 numbers for a table of 9 rows.")):
        swap(loss_of(model), model.embed, IDS, allowed=Allowed(groups=[0, 1]))


@pytest.mark.parametrize(("columns", "count"), [(5, 5), (1000, 2), (1024, 3), (1025, 4)])
def test_the_highest_scores_are_those_of_a_sort(columns: int, count: int) -> None:
    scores = torch.randn(20, columns, generator=torch.Generator().manual_seed(0))
    scores[3] = -torch.inf
    scores[4, 1:] = -torch.inf
    values, indices = top_k(scores, count)
    expected = scores.sort(descending=True).values[:, :count]
    assert torch.equal(values, expected)
    finite = values > -torch.inf
    assert torch.equal(scores.gather(1, indices.clamp(max=columns - 1))[finite], values[finite])
    assert all(len(row.unique()) == count for row in indices[:3])
