"""The network reads each sentence as if it were alone, and as packed sequences would."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.tagger import LSTMTagger
from frostline.tagger.data.batches import NO_TAG, encode_corpus, pad
from frostline.tagger.data.vocabulary import Vocabulary
from frostline.tagger.network.model import LockedDropout

LENGTHS = [5, 1, 3, 5, 2]
TAGS = ["O", "B-a", "I-a"]


def _model(crf: bool = True) -> LSTMTagger:
    torch.manual_seed(0)
    return LSTMTagger(torch.randn(10, 4), TAGS, hidden=6, shape_width=2, dropout=0.5, crf=crf).eval()


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    after_end = torch.arange(5) >= torch.tensor(LENGTHS)[:, None]
    rows = torch.randint(1, 10, (5, 5), generator=draw).masked_fill(after_end, 0)
    shapes = torch.randint(1, 9, (5, 5), generator=draw).masked_fill(after_end, 0)
    return rows, shapes, torch.tensor(LENGTHS)


def test_scores_equal_those_of_a_packed_bidirectional_lstm_with_the_same_weights() -> None:
    model, (rows, shapes, lengths) = _model(), _batch()
    packed = nn.LSTM(6, 6, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name, weight in model.forwards.named_parameters():
            packed.get_parameter(name).copy_(weight)
            packed.get_parameter(f"{name}_reverse").copy_(model.backwards.get_parameter(name))
    inputs = torch.cat([model.embed(rows), model.shape(shapes)], dim=-1)
    together = nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    outputs, _ = nn.utils.rnn.pad_packed_sequence(packed(together)[0], batch_first=True)
    scores, expected = model(rows, shapes, lengths), model.head(outputs)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(scores[row, :length], expected[row, :length], atol=1e-6, rtol=1e-5)


def test_a_sentence_gets_the_same_scores_alone_as_in_a_padded_batch() -> None:
    model, (rows, shapes, lengths) = _model(), _batch()
    scores = model(rows, shapes, lengths)
    for row, length in enumerate(LENGTHS):
        alone = model(rows[row : row + 1, :length], shapes[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(scores[row, :length], alone[0], atol=1e-6, rtol=1e-5)


def test_the_padding_row_gets_no_gradient_and_the_rows_in_use_do() -> None:
    model, (rows, shapes, lengths) = _model(), _batch()
    model(rows, shapes, lengths)[torch.arange(5) < lengths[:, None]].square().sum().backward()
    gradient = model.embed.weight.grad
    assert gradient is not None
    assert (gradient[0] == 0).all()
    assert (gradient[rows.unique()[1:]] != 0).any(dim=1).all()


def test_the_loss_of_a_sentence_is_that_of_its_tokens_without_padding() -> None:
    model = _model(crf=False)
    vocabulary = Vocabulary([f"w{i}" for i in range(8)], missing=0)
    sentences = [(["w0", "w3", "w5"], ["O", "B-a", "I-a"]), (["w7"], ["B-a"])]
    batch = pad(encode_corpus([*sentences, ([], [])], vocabulary, TAGS))
    assert batch.tags.tolist() == [[0, 1, 2], [1, NO_TAG, NO_TAG]]
    found = model.head.loss(model.read(batch.rows, batch.shapes, batch.lengths), batch.tags, batch.lengths)
    for row, (tokens, tags) in enumerate(sentences):
        alone = pad(encode_corpus([(tokens, tags)], vocabulary, TAGS))
        chances = model(alone.rows, alone.shapes, alone.lengths)[0].softmax(dim=-1)
        expected = sum(-chances[token, TAGS.index(tag)].log() for token, tag in enumerate(tags))
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("crf", [True, False])
def test_a_sentence_of_padding_alone_has_a_loss_of_0_and_leaves_no_nan(crf: bool) -> None:
    model, (rows, shapes, _) = _model(crf).train(), _batch()
    lengths = torch.tensor([5, 1, 0, 5, 2])
    tags = torch.ones(5, 5, dtype=torch.int64).masked_fill(torch.arange(5) >= lengths[:, None], NO_TAG)
    loss = model.head.loss(model.read(rows, shapes, lengths), tags, lengths)
    assert loss[2] == 0
    assert (loss[[0, 1, 3, 4]] > 0).all()
    loss.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_the_best_tags_of_a_chain_are_legal_where_those_of_single_tokens_are_not() -> None:
    model, batch = _model(), _batch()
    with torch.no_grad():
        model.head.linear.bias[:] = torch.tensor([0.0, 5.0, 9.0])  # I-a, everywhere
    alone = model(*batch).argmax(dim=-1)
    chains = model.head.tags(model.read(*batch), batch[2])
    for row, length in enumerate(LENGTHS):
        assert alone[row, 0] == 2
        assert chains[row, :length].tolist() == [1, *[2] * (length - 1)]


def test_a_dropped_feature_is_dropped_for_all_tokens_of_its_sentence_and_of_no_other() -> None:
    torch.manual_seed(0)
    dropout = LockedDropout(0.25)
    features = torch.ones(50, 7, 40)
    dropped = dropout(features)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (dropped[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(dropped[0], dropped[1])
    assert dropout.eval()(features) is features


def test_dropout_state_is_drawn_once_per_batch_and_is_off_in_eval() -> None:
    torch.manual_seed(0)
    model = LSTMTagger(torch.randn(10, 4), TAGS, hidden=6, shape_width=2, dropout=0.0, dropout_state=0.5)
    batch = _batch()
    plain = model.eval().read(*batch)
    state = torch.get_rng_state()
    found = model.train().read(*batch)
    torch.set_rng_state(state)
    by_hand = LSTMTagger(torch.zeros(10, 4), TAGS, hidden=6, shape_width=2, dropout=0.0).eval()
    torch.set_rng_state(state)
    by_hand.load_state_dict(model.state_dict())
    with torch.no_grad():
        for lstm in (by_hand.forwards, by_hand.backwards):
            lstm.weight_hh_l0.copy_(nn.functional.dropout(lstm.weight_hh_l0, 0.5))
    torch.testing.assert_close(found, by_hand.read(*batch))
    assert not torch.allclose(found, plain)
    found.sum().backward()
    gradient = model.forwards.weight_hh_l0.grad
    assert gradient is not None
    assert ((gradient == 0) == (by_hand.forwards.weight_hh_l0 == 0)).all(), "a weight that was zeroed does not learn"
    assert torch.equal(model.eval().read(*batch), plain)
