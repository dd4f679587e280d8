"""A bidirectional LSTM tagger, run by TensorFlow, against the same weights in torch, whole and partly frozen.

Letters used for shapes in this file:
    V  words (12)     D  width of a word (4)     H  hidden width (3)     *  a batch of sentences, (4, 6)

TensorFlow's LSTM has one bias, and adds forget_bias = 3 to the forget gate. torch's has two: forget_bias goes into
bias_ih, and bias_hh stays at 0 and must stay frozen. Its gates stand in the order i, f, g, o; TensorFlow's in i, j
(= g), f, o. PAD is 1. All of it float32.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import frostline as fl

DATA = dict(np.load(Path(__file__).parent / "data" / "o4_ner_bilstm.npz"))
PAD = 1
X, Y, LENGTHS = (torch.tensor(DATA[name]).long() for name in ("x", "y", "lengths"))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 4, _weight=torch.tensor(DATA["emb"]))
        self.lstm = nn.LSTM(4, 3, bidirectional=True, batch_first=True)
        self.head = nn.Linear(6, 5)
        self.lstm.load_state_dict({n: torch.tensor(DATA[f"torch_{n}"]) for n in self.lstm.state_dict()})
        self.head.load_state_dict({n: torch.tensor(DATA[f"torch_linear_{n}"]) for n in ("weight", "bias")})

    def forward(self, x, lengths):
        packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.head(out)

    def loss(self, x, y, lengths):
        mask = (x != PAD).float()
        each = F.cross_entropy(self(x, lengths).transpose(1, 2), y, reduction="none")  # (*)
        return ((each * mask).sum(1) / mask.sum(1)).mean()


# What the reference trained: everything but torch's second bias.
LIKE_TENSORFLOW = {"*": fl.everything, "lstm.bias_hh_l0*": fl.nothing}


def close(actual, name, atol=2e-6):
    torch.testing.assert_close(actual, torch.tensor(DATA[name]), rtol=0, atol=atol)


def gates_in_torch_order(columns):
    """(*, 4 H) in TensorFlow's order i, g, f, o -> (4 H, *) in torch's order i, f, g, o."""
    i, g, f, o = torch.tensor(columns).chunk(4, dim=-1)
    return torch.cat([i, f, g, o], dim=-1).movedim(-1, 0)


def test_logits_and_loss_are_those_of_the_reference():
    model = Tagger()
    logits = model(X[0], LENGTHS[0])
    close(logits, "logits")
    each = F.cross_entropy(logits.transpose(1, 2), Y[0], reduction="none")
    close(each, "loss_tensor")
    assert torch.equal((X[0] != PAD).float(), torch.tensor(DATA["mask"]))
    close(model.loss(X[0], Y[0], LENGTHS[0]), "loss")


def test_every_gradient_is_that_of_the_reference():
    model = Tagger()
    fl.train_only(model, LIKE_TENSORFLOW)
    model.loss(X[0], Y[0], LENGTHS[0]).backward()
    close(model.embed.weight.grad, "grad_emb_dense")
    close(model.head.weight.grad.T, "grad_dense_kernel")
    close(model.head.bias.grad, "grad_dense_bias")
    for side, suffix in {"fw": "l0", "bw": "l0_reverse"}.items():
        kernel, bias = (
            gates_in_torch_order(DATA[f"grad_{side}_kernel"]),
            gates_in_torch_order(DATA[f"grad_{side}_bias"]),
        )
        found = {n: getattr(model.lstm, f"{n}_{suffix}").grad for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        torch.testing.assert_close(found["weight_ih"], kernel[:, :4], rtol=0, atol=2e-6)
        torch.testing.assert_close(found["weight_hh"], kernel[:, 4:], rtol=0, atol=2e-6)
        torch.testing.assert_close(found["bias_ih"], bias, rtol=0, atol=2e-6)
        assert found["bias_hh"] is None


def test_a_table_of_which_three_words_learn_gives_the_same_loss_and_those_rows_of_the_gradient():
    model, words = Tagger(), X[0, 0, :3].unique().tolist()
    fl.train_only(model, LIKE_TENSORFLOW | {"embed.weight": fl.rows(words)})
    loss = model.loss(X[0], Y[0], LENGTHS[0])
    loss.backward()
    close(loss, "loss")
    rows = torch.tensor(DATA["grad_emb_dense"])[words]
    torch.testing.assert_close(model.embed.weight.grad, rows, rtol=0, atol=2e-6)
    assert (rows != 0).any()


@pytest.mark.parametrize(("case", "pads"), [("", 0.0), ("fulllen_", 0.145), ("midpad_", 0.014)])
def test_the_padding_row_gets_gradient_where_lengths_are_ignored_or_it_stands_inside_a_sentence(case, pads):
    model = Tagger()
    x = torch.tensor(DATA["midpad_x"]).long() if case == "midpad_" else X[0]
    lengths = torch.full((4,), 6) if case == "fulllen_" else LENGTHS[0]
    close(model(x, lengths), f"{case}logits")
    loss = model.loss(x, Y[0], lengths)
    loss.backward()
    close(loss, f"{case}loss")
    close(model.embed.weight.grad, "grad_emb_dense" if not case else f"{case}grad_emb_dense")
    assert model.embed.weight.grad[PAD].abs().max().item() == pytest.approx(pads, abs=5e-4)
    assert (model.embed.weight.grad[X[0, 0, 0]] != 0).all()


def test_a_sentence_of_nothing_but_padding_gives_nan():
    """torch packs no sentence of length 0, so it is given length 1; its loss is 0 / 0 all the same."""
    x = torch.tensor(DATA["empty_x"]).long()
    assert np.isnan(DATA["empty_loss"])
    assert Tagger().loss(x, Y[0], torch.tensor([6, 4, 1, 3])).isnan()


def train(name, selections):
    """Five steps, one batch each: SGD at 0.1 or Adam at 0.01, whose epsilon TensorFlow adds before the correction."""
    model = Tagger()
    parameters = fl.train_only(model, selections).parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.1) if name == "sgd5" else torch.optim.Adam(parameters, lr=0.01)
    losses = []
    for step, batch in enumerate(zip(X, Y, LENGTHS, strict=True), start=1):
        optimizer.param_groups[0]["eps"] = 1e-8 / (1 - 0.999**step) ** 0.5
        loss = model.loss(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return model, torch.stack(losses)


@pytest.mark.parametrize("name", ["sgd5", "adam5"])
def test_five_steps_give_the_losses_and_the_table_of_the_reference(name):
    model, losses = train(name, LIKE_TENSORFLOW)
    close(losses, f"{name}_losses")
    close(model.embed.weight.detach(), f"{name}_emb")
    assert torch.equal(model.lstm.bias_hh_l0, torch.zeros(12))
    assert (model.embed.weight.detach() != torch.tensor(DATA["emb"])).any()


def test_training_the_second_bias_too_is_another_run():
    _, losses = train("adam5", {"*": fl.everything})
    gap = (losses - torch.tensor(DATA["adam5_losses"])).abs().max().item()
    assert gap == pytest.approx(8.2e-3, rel=0.05)


@pytest.mark.parametrize("name", ["sgd5", "adam5"])
def test_with_half_of_the_words_frozen_five_steps_leave_them_every_bit(name):
    words = torch.arange(12) % 2 == 0
    model, _ = train(name, LIKE_TENSORFLOW | {"embed.weight": fl.rows(words)})
    start, end = torch.tensor(DATA["emb"]), model.embed.weight.detach().clone()
    assert torch.equal(end[~words], start[~words])
    seen = torch.zeros(12, dtype=torch.bool).index_fill_(0, X.unique(), True)
    assert (end != start)[words & seen].all()
