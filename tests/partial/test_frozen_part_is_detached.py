"""The frozen part gets no gradient, whatever other code sets `requires_grad` to, and beside `weight.detach()`."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frostline as fl

ROWS = [1, 3]
MASK = torch.arange(24).view(6, 4) % 5 == 0


class Plain(nn.Module):
    """A parameter of the module's own, used by an operation that the parts do not know."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return x @ self.weight.T


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


class LSTM(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


IDS, X = torch.tensor([[0, 1, 3, 3, 5]]), torch.linspace(-1, 1, 20).view(5, 4)
MODELS = {
    "embedding": (lambda: nn.Embedding(6, 4), "weight", fl.rows(ROWS), IDS),
    "sparse embedding": (lambda: nn.Embedding(6, 4, sparse=True), "weight", fl.rows(ROWS), IDS),
    "embedding of entries": (lambda: nn.Embedding(6, 4), "weight", fl.entries(MASK), IDS),
    "scaled by frequency": (lambda: nn.Embedding(6, 4, scale_grad_by_freq=True), "weight", fl.rows(ROWS), IDS),
    "bag": (lambda: nn.EmbeddingBag(6, 4), "weight", fl.rows(ROWS), IDS),
    "linear": (lambda: nn.Linear(4, 6), "weight", fl.rows(ROWS), X),
    "linear of entries": (lambda: nn.Linear(4, 6), "weight", fl.entries(MASK), X),
    "bias": (lambda: nn.Linear(4, 6), "bias", fl.rows(ROWS), X),
    "convolution": (lambda: nn.Conv1d(5, 6, 3), "weight", fl.rows(ROWS), X[None]),
    "recurrent": (lambda: LSTM(4, 3), "weight_ih_l0", fl.rows(ROWS), X),
    "plain parameter": (Plain, "weight", fl.rows(ROWS), X),
    "tied head": (Tied, "embed.weight", fl.rows(ROWS), IDS),
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "decay": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize(("make", "name", "selection", "x"), MODELS.values(), ids=MODELS.keys())
def test_requires_grad_set_on_all_parameters_moves_no_frozen_entry(make, name, selection, x, make_optimizer, dtype):
    torch.manual_seed(0)
    model = make().to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    if getattr(model, "sparse", False) and make_optimizer is OPTIMIZERS["decay"]:
        make_optimizer = fl.optim.RowAdamW  # torch's AdamW takes no sparse gradient
    fl.train_only(model, {name: selection})
    optimizer = make_optimizer(list(model.parameters()))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.requires_grad_(True)  # a warm-up, or the two halves of a GAN
    before = model.state_dict()[name].clone()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).float().square().sum().backward()
        optimizer.step()
    changed = model.state_dict()[name] != before
    learns = MASK
    if "entries" not in str(selection):
        learns = torch.zeros(changed.shape, dtype=torch.bool)
        learns[ROWS] = True
    assert not (changed & ~learns).any()
    assert (changed & learns).any()
    frozen = dict(model.named_parameters())[name]
    assert frozen.requires_grad
    assert frozen.grad is None


USES = {
    "a product": lambda w: (w * w.detach()).sum(),
    "where, the learned row detached": lambda w: torch.where(torch.arange(6)[:, None] == 1, w.detach(), w).sum(),
    "where, the learned row kept": lambda w: torch.where(torch.arange(6)[:, None] == 1, w, w.detach()).sum(),
    "stack": lambda w: (torch.stack([w, w.detach()]) * torch.arange(1.0, 3)[:, None, None]).sum(),
    "a Gram matrix": lambda w: (w @ w.detach().T).square().sum(),
    "a divergence": lambda w: F.kl_div(w.log_softmax(1), w.detach().softmax(1) * 2, reduction="sum"),
    "views": lambda w: (w[1] * w.detach()[1]).sum() + (w.t() @ w.detach()).sum(),
    "detached first": lambda w: torch.addcmul(w.detach(), w, w.detach()).square().sum(),
    "by data": lambda w: (w * w.data).sum(),
    "under no_grad": lambda w: (w - _mean(w)).square().sum(),
}


def _mean(w: Tensor) -> Tensor:
    with torch.no_grad():
        return w.mean(0)


@pytest.mark.parametrize("kind", ["rows", "entries"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_weight_beside_its_detached_self_has_the_gradient_of_a_plain_one(use, kind, dtype):
    torch.manual_seed(0)
    plain = Plain().to(dtype)
    partial = copy.deepcopy(plain)
    fl.train_only(partial, {"weight": fl.rows(ROWS) if kind == "rows" else fl.entries(MASK)})
    results = []
    for model in (plain, partial):
        loss = use(model.weight)
        loss.backward()
        results.append(loss.detach())
    assert torch.equal(*results)
    gradient = plain.weight.grad[ROWS] if kind == "rows" else plain.weight.grad[MASK]
    learned = partial.weight_learned.grad
    assert torch.equal(torch.zeros_like(gradient) if learned is None else learned, gradient)
    if use is not USES["where, the learned row detached"]:
        assert gradient.abs().sum() > 0
