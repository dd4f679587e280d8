"""The tagger's model and loss, configured as the original, against what TensorFlow computed.

Letters used for shapes in this file:
    V  words (12)     D  width of a word (4)     H  hidden width (3)     *  a batch of sentences, (4, 6)

The reference pads with word 1 and this tagger with row 0, so these two rows are swapped. Tags are the reference's 0-4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import frostline as fl
from frostline import tagger
from frostline.tagger import ORIGINAL, LSTMTagger
from frostline.tagger.data.batches import NO_TAG
from frostline.tagger.network.model import loss_weights

DATA = dict(np.load(Path(__file__).parents[2] / "oracles" / "data" / "o4_ner_bilstm.npz"))
REFERENCE_ROWS = torch.tensor([1, 0, *range(2, 12)])  # row of each of the reference's words; its own inverse
X, Y, LENGTHS = (torch.tensor(DATA[name]).long() for name in ("x", "y", "lengths"))
X = REFERENCE_ROWS[X]
SIDES = {"forwards": ("fw", ""), "backwards": ("bw", "_reverse")}


def _model() -> tuple[LSTMTagger, dict[str, Any]]:
    table = torch.tensor(DATA["emb"])[REFERENCE_ROWS]
    tags = ["O", "B-a", "I-a", "B-b", "I-b"]
    model = LSTMTagger(table, tags, 3, ORIGINAL.shape_width, dropout=0.0, crf=ORIGINAL.crf)
    assert ORIGINAL.forget_bias is not None
    unused = model.use_single_bias(ORIGINAL.forget_bias)
    with torch.no_grad():
        for side, (_, suffix) in SIDES.items():
            lstm = getattr(model, side)
            for name in ("weight_ih", "weight_hh", "bias_ih"):
                getattr(lstm, f"{name}_l0").copy_(torch.tensor(DATA[f"torch_{name}_l0{suffix}"]))
        model.head.linear.weight.copy_(torch.tensor(DATA["torch_linear_weight"]))
        model.head.linear.bias.copy_(torch.tensor(DATA["torch_linear_bias"]))
    return model, {"*": fl.everything} | dict.fromkeys(unused, fl.nothing)


def _loss(model: LSTMTagger, x: Tensor, y: Tensor, lengths: Tensor) -> Tensor:
    tags = y.masked_fill(x == 0, NO_TAG)
    read = model.read(x, torch.zeros_like(x), lengths)
    return (model.head.loss(read, tags, lengths) * loss_weights(tags, ORIGINAL.by_sentence)).sum()


def _close(actual: Tensor, name: str) -> None:
    torch.testing.assert_close(actual, torch.tensor(DATA[name]), rtol=0, atol=2e-6)


def _torch_order(columns: Any) -> Tensor:
    """(*, 4 H) in TensorFlow's order i, g, f, o -> (4 H, *) in torch's order i, f, g, o."""
    i, g, f, o = torch.tensor(columns).chunk(4, dim=-1)
    return torch.cat([i, f, g, o], dim=-1).movedim(-1, 0)


def test_the_bias_of_the_forget_gate_is_where_the_reference_has_it() -> None:
    model = LSTMTagger(torch.zeros(12, 4), ["O"], 3, shape_width=0, dropout=0.0)
    model.use_single_bias(3.0)
    for side, (_, suffix) in SIDES.items():
        lstm, reference = getattr(model, side), torch.tensor(DATA[f"torch_bias_ih_l0{suffix}"])  # 3 and small numbers
        assert torch.equal(lstm.bias_ih_l0.detach(), 3.0 * (reference > 1.5))
        assert lstm.bias_ih_l0.sum() == 9
        assert torch.equal(lstm.bias_hh_l0.detach(), torch.tensor(DATA[f"torch_bias_hh_l0{suffix}"]))


@pytest.mark.parametrize("case", ["", "midpad_"])
def test_scores_and_loss_are_those_of_the_reference(case: str) -> None:
    model, _ = _model()
    x = REFERENCE_ROWS[torch.tensor(DATA["midpad_x"]).long()] if case else X[0]
    scores, expected = model(x, torch.zeros_like(x), LENGTHS[0]), torch.tensor(DATA[f"{case}logits"])
    inside = torch.arange(6) < LENGTHS[0][:, None]
    torch.testing.assert_close(scores[inside], expected[inside], rtol=0, atol=2e-6)
    _close(_loss(model, x, Y[0], LENGTHS[0]), f"{case}loss")


def test_every_gradient_is_that_of_the_reference() -> None:
    model, selections = _model()
    fl.train_only(model, selections)
    _loss(model, X[0], Y[0], LENGTHS[0]).backward()
    assert model.embed.weight.grad is not None
    _close(model.embed.weight.grad[REFERENCE_ROWS], "grad_emb_dense")
    _close(model.head.linear.weight.grad.T, "grad_dense_kernel")
    _close(model.head.linear.bias.grad, "grad_dense_bias")
    for side, (name, _) in SIDES.items():
        kernel, bias = _torch_order(DATA[f"grad_{name}_kernel"]), _torch_order(DATA[f"grad_{name}_bias"])
        lstm = getattr(model, side)
        torch.testing.assert_close(lstm.weight_ih_l0.grad, kernel[:, :4], rtol=0, atol=2e-6)
        torch.testing.assert_close(lstm.weight_hh_l0.grad, kernel[:, 4:], rtol=0, atol=2e-6)
        torch.testing.assert_close(lstm.bias_ih_l0.grad, bias, rtol=0, atol=2e-6)
        assert lstm.bias_hh_l0.grad is None


@pytest.mark.parametrize("name", ["sgd5", "adam5"])
def test_five_steps_give_the_losses_and_the_table_of_the_reference(name: str) -> None:
    """SGD at 0.1 or Adam at 0.01, whose epsilon TensorFlow adds before the correction."""
    model, selections = _model()
    parameters = fl.train_only(model, selections).parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.1) if name == "sgd5" else torch.optim.Adam(parameters, lr=0.01)
    losses = []
    for step, batch in enumerate(zip(X, Y, LENGTHS, strict=True), start=1):
        optimizer.param_groups[0]["eps"] = 1e-8 / (1 - 0.999**step) ** 0.5
        loss = _loss(model, *batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    _close(torch.stack(losses), f"{name}_losses")
    _close(model.embed.weight.detach()[REFERENCE_ROWS], f"{name}_emb")
    assert torch.equal(model.forwards.bias_hh_l0.detach(), torch.zeros(12))
    assert (model.embed.weight.detach()[REFERENCE_ROWS] != torch.tensor(DATA["emb"])).any()


def test_a_sentence_of_padding_alone_has_a_loss_of_0_where_the_reference_has_nan() -> None:
    model, _ = _model()
    x, lengths = REFERENCE_ROWS[torch.tensor(DATA["empty_x"]).long()], torch.tensor([6, 4, 0, 3])
    assert np.isnan(DATA["empty_loss"])
    found = _loss(model, x, Y[0], lengths)
    found.backward()
    others = [0, 1, 3]
    torch.testing.assert_close(4 * found, 3 * _loss(model, x[others], Y[0][others], lengths[others]))
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_original_config_trains_and_keeps_its_second_bias_at_zero(toy: Any) -> None:
    run = tagger.train(toy.train, toy.dev, toy.vectors, epochs=3, config=ORIGINAL)
    assert run.best.dev_f1 > 0.5
    for lstm in (run.tagger.model.forwards, run.tagger.model.backwards):
        assert (lstm.bias_hh_l0 == 0).all()
        assert (lstm.bias_ih_l0[200:400] > 2).all()
        assert not torch.equal(lstm.bias_ih_l0[200:400], torch.full((200,), 3.0))
    assert run.tagger.model.head.crf is None
    assert run.audit.frozen_moved == 0


def test_a_tagger_of_the_original_config_is_saved_and_loaded(toy: Any, tmp_path: Path) -> None:
    trained = tagger.train(toy.train, toy.dev, toy.vectors, epochs=1, config=ORIGINAL).tagger
    trained.save(tmp_path / "model")
    loaded = tagger.Tagger.load(tmp_path / "model")
    assert loaded.model.head.crf is None
    assert loaded.predict([tokens for tokens, _ in toy.dev]) == trained.predict([tokens for tokens, _ in toy.dev])
