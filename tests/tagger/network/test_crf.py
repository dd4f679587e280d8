"""The sums and the best chains of the CRF are those of writing down every legal chain."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from frostline.tagger.network.crf import CRF

TAGS = ["O", "B-a", "I-a", "B-b", "I-b"]
LENGTHS = [4, 1, 0, 3]


def _crf() -> CRF:
    torch.manual_seed(0)
    crf = CRF(TAGS).double()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_()
    return crf


def _scores() -> Tensor:
    return torch.randn(len(LENGTHS), 4, len(TAGS), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _legal(chain: tuple[int, ...]) -> bool:
    names = [TAGS[tag] for tag in chain]
    return all(
        name[0] != "I" or (before != "O" and before[2:] == name[2:])
        for before, name in zip(["O", *names], names, strict=False)
    )


def _chains(crf: CRF, scores: Tensor) -> dict[tuple[int, ...], Tensor]:
    """The score of every legal chain over `scores` (T, K), written out."""
    found = {}
    for chain in filter(_legal, product(range(len(TAGS)), repeat=len(scores))):
        value = crf.start[chain[0]] + crf.end[chain[-1]]
        for token, tag in enumerate(chain):
            value = value + scores[token, tag]
        for before, tag in pairwise(chain):
            value = value + crf.transitions[before, tag]
        found[chain] = value
    return found


@pytest.mark.parametrize("row", [row for row, length in enumerate(LENGTHS) if length])
def test_the_loss_of_every_legal_chain_is_its_share_of_all_of_them(row: int) -> None:
    crf, scores, length = _crf(), _scores(), LENGTHS[row]
    chains = _chains(crf, scores[row, :length])
    total = torch.logsumexp(torch.stack(list(chains.values())), dim=0)
    assert len(chains) > 2
    for chain, value in chains.items():
        tags = torch.full((len(LENGTHS), 4), -100)
        tags[row, :length] = torch.tensor(chain)
        lengths = torch.tensor([length if i == row else 0 for i in range(len(LENGTHS))])
        loss = crf.loss(scores, tags, lengths)
        torch.testing.assert_close(loss[row], total - value, rtol=1e-12, atol=1e-12)
        assert torch.equal(loss[lengths == 0], torch.zeros(len(LENGTHS) - 1, dtype=torch.float64))


def test_the_best_chain_is_the_legal_one_of_the_highest_score() -> None:
    crf, scores = _crf(), 3 * _scores()
    found = crf.decode(scores, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        assert found[row, length:].tolist() == [0] * (4 - length)
        if length:
            chains = _chains(crf, scores[row, :length])
            assert tuple(found[row, :length].tolist()) == max(chains, key=lambda chain: chains[chain].item())
    assert not _legal(tuple(scores[0].argmax(dim=1).tolist())), "token by token the chain would be illegal here"


def test_of_two_best_chains_the_one_of_the_lower_last_tag_is_found() -> None:
    crf = CRF(TAGS)
    even = torch.zeros(2, 3, len(TAGS))
    even[:, 1, 3], even[:, 1, 1] = 1.0, 1.0  # B-a and B-b, and any end
    assert crf.decode(even, torch.tensor([3, 2])).tolist() == [[0, 1, 0], [0, 1, 0]]
    even[:, 1, 3] = 2.0
    assert crf.decode(even, torch.tensor([3, 2])).tolist() == [[0, 3, 0], [0, 3, 0]]


def test_the_best_chain_of_a_sentence_is_the_same_alone_as_among_others() -> None:
    crf, generator = _crf(), torch.Generator().manual_seed(2)
    lengths = torch.randint(0, 12, (30,), generator=generator)
    scores = torch.randn(30, 12, len(TAGS), dtype=torch.float64, generator=generator)
    found = crf.decode(scores, lengths)
    assert len(found.unique()) == len(TAGS)
    for row, length in enumerate(lengths.tolist()):
        if length:
            alone = crf.decode(scores[row : row + 1, :length], lengths[row : row + 1])
            assert torch.equal(found[row, :length], alone[0])
        assert (found[row, length:] == 0).all()


def test_scores_and_tags_after_the_end_change_nothing() -> None:
    crf, scores, lengths = _crf(), _scores(), torch.tensor(LENGTHS)
    tags = crf.decode(scores, lengths)
    after_end = torch.arange(4) >= lengths[:, None]
    other = scores.masked_fill(after_end[:, :, None], 1e9)
    assert torch.equal(crf.loss(scores, tags, lengths), crf.loss(other, tags.masked_fill(after_end, -100), lengths))
    assert torch.equal(crf.decode(other, lengths), tags)


def test_gradients_are_finite_and_those_of_small_steps() -> None:
    crf, scores, lengths = _crf(), _scores().requires_grad_(), torch.tensor(LENGTHS)
    tags = crf.decode(scores, lengths)

    def total(scores: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> Tensor:
        new = {"transitions": transitions, "start": start, "end": end}
        return torch.func.functional_call(_Loss(crf), {f"crf.{k}": v for k, v in new.items()}, (scores, tags, lengths))

    assert torch.autograd.gradcheck(total, (scores, crf.transitions, crf.start, crf.end))
    crf.loss(scores, tags, lengths).sum().backward()
    assert scores.grad is not None
    assert (scores.grad[2] == 0).all()
    assert (scores.grad[0] != 0).any()
    assert (crf.transitions.grad[0, 2] == 0).all(), "an illegal move gets no gradient"
    assert (crf.transitions.grad[0, 1] != 0).all()


class _Loss(torch.nn.Module):
    def __init__(self, crf: CRF) -> None:
        super().__init__()
        self.crf = crf

    def forward(self, scores: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        return self.crf.loss(scores, tags, lengths).sum()
