"""The modules' loss is that of word2vec; the losses over candidates are TensorFlow's, number by number."""

import math

import numpy as np
import pytest
import torch

import frostline as fl
from frostline.word2vec import CBOW, SkipGram, nce_loss, sampled_softmax_loss

CONTEXTS, TARGETS = torch.tensor([[0, 2, -1], [1, 3, 4]]), torch.tensor([1, 2])
NEGATIVES = torch.tensor([[3, 1], [0, 4]])  # the first target is among its negatives


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = CBOW(5, 3).double()
    torch.nn.init.normal_(model.output.weight)
    return model


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_cbow_is_the_loss_by_hand(model):
    rows, out = model.input.weight.tolist(), np.array(model.output.weight.tolist())
    first, second = np.mean([rows[0], rows[2]], axis=0), np.mean([rows[1], rows[3], rows[4]], axis=0)
    one = -math.log(sigmoid(out[1] @ first)) - math.log(sigmoid(-out[3] @ first))
    two = -math.log(sigmoid(out[2] @ second)) - sum(math.log(sigmoid(-out[k] @ second)) for k in (0, 4))
    assert model(CONTEXTS, TARGETS, NEGATIVES).item() == pytest.approx((one + two) / 2, rel=1e-12)
    scores = [out @ first, out @ second]
    softmax = [math.log(np.exp(s).sum()) - s[t] for s, t in zip(scores, (1, 2), strict=True)]
    assert model(CONTEXTS, TARGETS).item() == pytest.approx(sum(softmax) / 2, rel=1e-12)


def test_skip_gram_is_cbow_with_one_word(model):
    other = SkipGram(5, 3).double()
    other.load_state_dict(model.state_dict())
    contexts = torch.tensor([[4], [0]])
    assert other(contexts, TARGETS, NEGATIVES).item() == pytest.approx(model(contexts, TARGETS, NEGATIVES).item())
    with pytest.raises(fl.ShapeError, match="a skip-gram target has one word"):
        other(CONTEXTS, TARGETS, NEGATIVES)


def test_chosen_rows_of_both_tables_learn_and_the_others_keep_every_bit(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = fl.train_only(model, {"input.weight": fl.rows([2, 4]), "output.weight": fl.rows([1])})
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1)
    model(CONTEXTS, TARGETS, NEGATIVES).backward()
    optimizer.step()
    for name, rows in {"input.weight": [2, 4], "output.weight": [1]}.items():
        moved = (model.state_dict()[name] != before[name]).any(dim=1)
        assert moved.nonzero().flatten().tolist() == rows


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((CONTEXTS, TARGETS[:1], NEGATIVES), r"expected \(B, C\) and \(B,\), got \(2, 3\) and \(1,\)"),
        ((CONTEXTS[0], TARGETS, NEGATIVES), "contexts, targets"),
        ((CONTEXTS, TARGETS, NEGATIVES[0]), r"negatives: expected \(2, K\), got \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(model, arguments, says):
    with pytest.raises(fl.ShapeError, match=says):
        model(*arguments)


WEIGHTS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)
BIASES = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.float64)
INPUTS = torch.tensor([[0.5, -1.0], [2.0, 1.0]], dtype=torch.float64)
LABELS, SAMPLED = torch.tensor([1, 2]), torch.tensor([2, 0, 3])
TRUE, EXPECTED = torch.tensor([0.5, 1.5], dtype=torch.float64), torch.tensor([1.5, 0.25, 2.0], dtype=torch.float64)


def logits():
    """Return the logits by TensorFlow's formula, in plain numbers: of the label, then of the candidates."""
    found = []
    for x, label, count in zip(INPUTS.tolist(), LABELS.tolist(), TRUE.tolist(), strict=True):
        pairs = [(label, count), *zip(SAMPLED.tolist(), EXPECTED.tolist(), strict=True)]
        found.append([np.dot(x, WEIGHTS[k].tolist()) + BIASES[k].item() - math.log(n) for k, n in pairs])
    return found


@pytest.mark.parametrize("remove", [False, True])
def test_nce_is_the_formula_of_tensorflow(remove):
    wanted = []
    for row, values in enumerate(logits()):
        others = [v for v, k in zip(values[1:], SAMPLED.tolist(), strict=True) if not (remove and k == LABELS[row])]
        wanted.append(-math.log(sigmoid(values[0])) - sum(math.log(sigmoid(-v)) for v in others))
    found = nce_loss(WEIGHTS, BIASES, LABELS, INPUTS, SAMPLED, TRUE, EXPECTED, remove)
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("remove", [False, True])
def test_sampled_softmax_is_the_formula_of_tensorflow(remove):
    wanted = []
    for row, values in enumerate(logits()):
        others = [v for v, k in zip(values[1:], SAMPLED.tolist(), strict=True) if not (remove and k == LABELS[row])]
        wanted.append(math.log(sum(math.exp(v) for v in [values[0], *others])) - values[0])
    found = sampled_softmax_loss(WEIGHTS, BIASES, LABELS, INPUTS, SAMPLED, TRUE, EXPECTED, remove)
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("loss", [nce_loss, sampled_softmax_loss])
def test_gradients_of_the_losses_are_right_and_reach_the_rows_that_learn(loss):
    def total(weights, inputs):
        return loss(weights, BIASES, LABELS, inputs, SAMPLED, TRUE, EXPECTED, True).sum()

    assert torch.autograd.gradcheck(total, (WEIGHTS.clone().requires_grad_(), INPUTS.clone().requires_grad_()))
    layer = torch.nn.Embedding.from_pretrained(WEIGHTS.clone(), freeze=False)
    fl.train_only(layer, {"weight": fl.rows([3, 1])})
    total(layer.weight, INPUTS).backward()
    dense = WEIGHTS.clone().requires_grad_()
    total(dense, INPUTS).backward()
    assert torch.allclose(layer.weight.learned.grad, dense.grad[[3, 1]])
    assert dense.grad[[3, 1]].abs().sum() > 0


def test_shapes_of_candidates_are_checked():
    with pytest.raises(fl.ShapeError, match=r"sampled_expected: expected shape \(3,\), got \(2,\)"):
        nce_loss(WEIGHTS, None, LABELS, INPUTS, SAMPLED, TRUE, EXPECTED[:2])
