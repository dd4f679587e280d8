"""A grouped product of experts: the bits of a plain weight, and a gradient of the learned experts alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl

pytestmark = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no grouped_mm")
OFFS = torch.tensor([4, 4, 12, 20], dtype=torch.int32)  # the second expert has no token


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("learn", [[2], [3, 0], [1], [0, 1, 2, 3]])
@pytest.mark.parametrize("call", [F.grouped_mm, torch._grouped_mm], ids=["public", "private"])
def test_the_learned_experts_get_the_gradient_of_a_plain_weight(call, learn, transposed):
    torch.manual_seed(0)
    shape = (4, 32, 16) if transposed else (4, 16, 32)
    module = nn.Module()
    module.w = nn.Parameter(torch.randn(shape).bfloat16())
    plain = module.w.detach().clone().requires_grad_()
    fl.train_only(module, {"w": fl.rows(learn)})
    xs = [torch.randn(20, 16).bfloat16().requires_grad_() for _ in range(2)]
    xs[1].data.copy_(xs[0].data)
    found = []
    for weight, x in zip((module.w, plain), xs, strict=True):
        out = call(x, weight.transpose(1, 2) if transposed else weight, offs=OFFS)
        (out.float() * torch.arange(32.0)).sin().sum().backward()
        found.append(out.detach())
    assert torch.equal(*found)
    torch.testing.assert_close(module.w_learned.grad, plain.grad[learn], rtol=2e-2, atol=2e-2)
    assert torch.equal(xs[0].grad, xs[1].grad)
    assert module.w_learned.grad.count_nonzero() > 0 or learn == [1]


def test_a_step_before_a_gradient_penalty_raises_and_keywords_are_taken():
    module = nn.Module()
    module.w = nn.Parameter(torch.randn(4, 16, 32))
    plain = module.w.detach().clone()
    fl.train_only(module, {"w": fl.rows([2])})
    x = torch.randn(20, 16, requires_grad=True)
    out = F.grouped_mm(mat_a=x, mat_b=module.w, offs=OFFS)
    assert torch.equal(out, F.grouped_mm(x, plain, offs=OFFS))
    loss = F.grouped_mm(x, module.w, offs=OFFS).sin().sum()
    with torch.no_grad():
        module.w_learned.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x, create_graph=True)
