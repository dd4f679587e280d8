"""stop_gradient and scale_gradient: the value passes bit for bit, the gradient does not, in every mode of autograd."""

import re
import shutil
import struct
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jvp, vmap

import frostline as fl

# torch's own forward mode still scripts its rules.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

X = torch.tensor([[0.5, -1.5, 2.0], [3.0, -0.25, 1.0]], dtype=torch.float64)
STOPS = torch.tensor([[True, False, False], [False, True, True]])
PASSES = (~STOPS).double()
SCALES = torch.tensor([0.1, -2.0, 0.0], dtype=torch.float64)

# Each gate with the factor that its gradient gets, written by hand as a plain tensor.
GATES = {
    "stop everything": (lambda x: fl.stop_gradient(x), torch.zeros(2, 3, dtype=torch.float64)),
    "stop where": (lambda x: fl.stop_gradient(x, STOPS), PASSES),
    "stop a column": (lambda x: fl.stop_gradient(x, STOPS[0]), PASSES[0].expand(2, 3)),
    "scale by a number": (lambda x: fl.scale_gradient(x, 0.1), torch.full((2, 3), 0.1, dtype=torch.float64)),
    "reverse": (lambda x: fl.scale_gradient(x, -1), torch.full((2, 3), -1.0, dtype=torch.float64)),
    "scale by a tensor": (lambda x: fl.scale_gradient(x, SCALES), SCALES.expand(2, 3)),
}
gates = pytest.mark.parametrize(("gate", "factor"), GATES.values(), ids=GATES.keys())


# aot_eager captures and differentiates the graph, and then runs it as it is; inductor also writes C++ for it.
BACKEND = "inductor" if any(map(shutil.which, ["g++", "clang++", "c++"])) else "aot_eager"


def compiled(function, *args, backend=BACKEND):
    """Compile without a graph break; torch and its compiler use deprecated names of their own, not ours to mend."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(function, fullgraph=True, backend=backend)(*args)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@gates
def test_the_value_passes_bit_for_bit_even_negative_zero_infinity_and_the_payload_of_nan(gate, factor, dtype):
    quiet_nan_with_payload = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_1234))[0]
    tiny, huge = torch.finfo(dtype).smallest_normal / 2, torch.finfo(dtype).max
    values = [[-0.0, float("inf"), -float("inf")], [quiet_nan_with_payload, tiny, -huge]]
    x = torch.tensor(values, dtype=torch.float64).to(dtype).requires_grad_()
    assert torch.equal(bits(gate(x)), bits(x))
    assert gate(x).dtype == dtype


@gates
def test_the_gradient_is_multiplied_by_the_factor_exactly(gate, factor):
    x = X.clone().requires_grad_()
    result = gate(x)
    if result.requires_grad:
        (result * SCALES).sum().backward()
    assert torch.equal(torch.zeros_like(x) if x.grad is None else x.grad, factor * SCALES)


@pytest.mark.parametrize("above", [float("inf"), -float("inf"), float("nan")])
def test_a_stopped_entry_gets_exactly_zero_under_infinity_and_nan(above):
    x = X.clone().requires_grad_()
    fl.stop_gradient(x, STOPS).backward(torch.full_like(x, above))
    assert torch.equal(x.grad[STOPS], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(bits(x.grad[~STOPS]), bits(torch.full((3,), above, dtype=torch.float64)))  # the others get it


def test_the_product_with_a_mask_that_people_write_instead_gives_nan_under_infinity():
    x = X.clone().requires_grad_()
    (x * PASSES + (x * (1 - PASSES)).detach()).backward(torch.full_like(x, float("inf")))
    assert x.grad[STOPS].isnan().all()


@gates
def test_writing_into_the_result_changes_neither_x_nor_its_gradient(gate, factor):
    x = X.clone().requires_grad_()
    result = gate(x)
    if result.requires_grad:
        result.mul_(3).add_(1)
        result.sum().backward()
        assert torch.equal(x.grad, factor * 3)
    else:
        result.fill_(9.0)
    assert torch.equal(x.detach(), X)
    assert not torch.equal(result, X)


@gates
def test_writing_into_x_afterwards_does_not_change_the_result(gate, factor):
    x = X.clone()
    result = gate(x)
    x.fill_(9.0)
    assert torch.equal(result, X)


@gates
def test_second_derivatives_pass_the_gate_twice(gate, factor):
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad((gate(x) ** 3).sum() + (x**2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(first, factor * 3 * X**2 + 2 * X, rtol=1e-14, atol=0)
    torch.testing.assert_close(second, factor**2 * 6 * X + 2, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("gate", [lambda x: fl.scale_gradient(x, 1.0), lambda x: fl.stop_gradient(x, STOPS & False)])
def test_an_open_gate_passes_gradcheck_and_gradgradcheck(gate):
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gate(x).sin(), x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: gate(x).sin(), x)


def transforms(gate):
    """The ways of torch.func to differentiate a gate; each is a function of x."""

    def loss(x):
        return (gate(x.expand(2, 3)) ** 3).sum()

    return {
        "grad": grad(loss),
        "grad of grad": grad(lambda x: grad(loss)(x).sum()),
        "jvp": lambda x: jvp(lambda x: gate(x) ** 3, (x,), (torch.ones_like(x),))[1],
        "vmap": vmap(lambda row: (gate(row.expand(2, 3)) ** 3).sum()),
        "vmap of grad": vmap(grad(loss)),
        "hessian": hessian(loss),
    }


@gates
def test_torch_func_gives_what_the_formula_gives(gate, factor):
    way = transforms(gate)
    close = {"rtol": 1e-14, "atol": 1e-14}
    torch.testing.assert_close(way["grad"](X), factor * 3 * X**2, **close)
    torch.testing.assert_close(way["jvp"](X), factor * 3 * X**2, **close)
    torch.testing.assert_close(way["grad of grad"](X), factor**2 * 6 * X, **close)
    torch.testing.assert_close(way["hessian"](X).reshape(6, 6), torch.diag((factor**2 * 6 * X).flatten()), **close)
    torch.testing.assert_close(way["vmap"](X), 2 * (X**3).sum(1), **close)  # each row stands twice under the gate
    torch.testing.assert_close(way["vmap of grad"](X), factor.sum(0) * 3 * X**2, **close)


@gates
def test_compiled_without_a_graph_break_it_gives_the_eager_derivatives(gate, factor):
    for name, way in transforms(gate).items():
        found = compiled(way, X, backend="aot_eager")
        torch.testing.assert_close(found, way(X), rtol=1e-14, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")


@gates
def test_compiled_training_gives_the_eager_value_and_gradient(gate, factor):
    def loss(x):
        return (gate(x) ** 3).sum() + (x**2).sum()

    eager, other = X.clone().requires_grad_(), X.clone().requires_grad_()
    loss(eager).backward()
    compiled(loss, other).backward()
    torch.testing.assert_close(other.grad, eager.grad, rtol=1e-14, atol=0)
    torch.testing.assert_close(other.grad, factor * 3 * X**2 + 2 * X, rtol=1e-14, atol=0)


@gates
def test_compiled_the_value_still_passes_bit_for_bit(gate, factor):
    x = torch.tensor([[-0.0, float("inf"), -float("inf")], [float("nan"), 1e-310, -1.7e308]], dtype=torch.float64)
    assert torch.equal(bits(compiled(gate, x)), bits(x))


def test_a_stopped_entry_gets_exactly_zero_under_infinity_when_compiled_too():
    x = X.clone().requires_grad_()
    compiled(lambda x: fl.stop_gradient(x, STOPS), x).backward(torch.full_like(x, float("inf")))
    assert torch.equal(x.grad[STOPS], torch.zeros(3, dtype=torch.float64))
    assert x.grad[~STOPS].isinf().all()


@pytest.mark.filterwarnings("ignore")  # as in `compiled`
def test_a_scale_that_changes_from_call_to_call_compiles_without_a_graph_break():
    torch._dynamo.reset()
    gate = torch.compile(fl.scale_gradient, fullgraph=True, backend="aot_eager")
    for scale in (0.1, 0.2, 0.3, -4.0):  # from the second on the compiler makes the number a symbol
        x = torch.ones(3, requires_grad=True)
        gate(x, scale).sum().backward()
        assert torch.equal(x.grad, torch.full((3,), scale))


@pytest.mark.filterwarnings("ignore")  # as in `compiled`
def test_shapes_that_change_from_call_to_call_compile_without_a_graph_break():
    torch._dynamo.reset()
    gate = torch.compile(fl.stop_gradient, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 5, 7):
        x, stops = torch.ones(rows, 2, requires_grad=True), torch.arange(rows)[:, None] % 2 == 0
        gate(x, stops).sum().backward()
        assert torch.equal(x.grad, (~stops).float().expand(rows, 2))


def test_vmap_takes_the_mask_and_the_scale_per_example_too():
    value = vmap(grad(lambda x, m: fl.stop_gradient(x, m).pow(2).sum()))(X, STOPS)
    assert torch.equal(value, PASSES * 2 * X)
    value = vmap(grad(lambda x, s: fl.scale_gradient(x, s).pow(2).sum()), in_dims=(None, 0))(X, SCALES)
    torch.testing.assert_close(value, SCALES[:, None, None] * 2 * X, rtol=1e-15, atol=0)


def test_no_gradient_goes_to_the_scale():
    scale = torch.tensor(0.5, requires_grad=True)
    x = torch.ones(3, requires_grad=True)
    fl.scale_gradient(x, scale).sum().backward()
    assert scale.grad is None
    assert torch.equal(x.grad, torch.full((3,), 0.5))


def test_a_scale_of_another_dtype_leaves_the_dtype_of_value_and_gradient():
    x = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    result = fl.scale_gradient(x, torch.full((3,), 0.5, dtype=torch.float64))
    result.sum().backward()
    assert (result.dtype, x.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(x.grad, torch.full((3,), 0.5, dtype=torch.bfloat16))


def test_complex_values_pass_too():
    x = torch.tensor([1 + 2j, 3 - 1j], requires_grad=True)
    (fl.stop_gradient(x, torch.tensor([True, False])) + fl.scale_gradient(x, 0.5)).abs().pow(2).sum().backward()
    torch.testing.assert_close(x.grad, 4 * x.detach() * torch.tensor([0.5, 1.5]))


def test_the_gates_take_a_partial_weight_and_the_gradient_reaches_what_learns():
    model = nn.Sequential(nn.Embedding(5, 3))
    before = model[0].weight.detach().clone()
    plan = fl.train_only(model, {"0.weight": fl.rows([1, 4])})
    (learned,) = plan.parameters()
    stops = torch.tensor([[True], [True], [False], [False], [False]])  # of the learned rows, row 1 stops
    stopped = fl.stop_gradient(model[0].weight, stops)
    scaled = fl.scale_gradient(model[0].weight, 0.5)
    assert torch.equal(stopped, before)
    assert torch.equal(scaled, before)
    (stopped + scaled).sum().backward()
    assert torch.equal(learned.grad, torch.tensor([[0.5] * 3, [1.5] * 3]))
    stopped.detach().fill_(9.0)
    assert torch.equal(model[0].weight.detach().clone(), before)


@pytest.mark.parametrize("learns", [fl.rows([3, 1]), fl.entries(torch.arange(15).reshape(5, 3) % 4 == 0)], ids=str)
def test_compiled_a_partial_weight_gets_the_eager_gradient(learns):
    model = nn.Embedding(5, 3)
    (learned,) = fl.train_only(model, {"weight": learns}).parameters()
    stops = torch.tensor([[True], [True], [False], [False], [False]])

    def loss():
        return (fl.stop_gradient(model.weight, stops) ** 2 + fl.scale_gradient(model.weight, 0.5) ** 3).sum()

    loss().backward()
    eager, learned.grad = learned.grad, None
    compiled(loss, backend="aot_eager").backward()
    torch.testing.assert_close(learned.grad, eager)
    assert (eager != 0).all()


ONES = torch.ones(2, 3)
BAD_STOPS = [
    (ONES, PASSES, TypeError, "where: dtype torch.float64, but it must be torch.bool, True where the gradient stops. "
     "Pass `where=(mask != 0)`"),
    (ONES, [True], TypeError, "where: list, but it must be a bool tensor. Pass `torch.as_tensor(where)`."),
    (ONES, torch.ones(2, dtype=torch.bool), fl.ShapeError,
     "where: shape (2,) does not broadcast to the shape of x, (2, 3)."),
    (ONES, torch.ones(2, dtype=torch.bool), fl.ShapeError, "one value a row is `where[:, None]`."),
    (ONES, torch.ones(4, 2, 3, dtype=torch.bool), fl.ShapeError, "where: shape (4, 2, 3) does not broadcast"),
    (torch.ones(1, 3), STOPS, fl.ShapeError, "where: shape (2, 3) does not broadcast to the shape of x, (1, 3)."),
    (ONES, torch.ones(3, dtype=torch.bool, device="meta"), ValueError,
     "where: on meta, but x is on cpu. Pass `where.to(x.device)`."),
    (ONES.long(), None, TypeError, "x: dtype torch.int64 has no gradient. Pass a floating-point tensor, such as"),
    ([1.0], None, TypeError, "x: list, but it must be a tensor. Pass `torch.as_tensor(x)`."),
]  # fmt: skip
BAD_SCALES = [
    (ONES, float("nan"), ValueError, "scale: nan, but it must be finite. Pass 0.1 for a tenth of the gradient."),
    (ONES, float("inf"), ValueError, "scale: inf, but it must be finite."),
    (ONES, "0.1", TypeError, "scale: str, but it must be a number or a tensor. Pass `float(scale)`."),
    (ONES, torch.tensor(1j), TypeError, "scale: dtype torch.complex64, but it must be real."),
    (ONES, torch.ones(2), fl.ShapeError, "scale: shape (2,) does not broadcast to the shape of x, (2, 3)."),
    (ONES.long(), 0.1, TypeError, "x: dtype torch.int64 has no gradient."),
]


@pytest.mark.parametrize(("x", "where", "error", "says"), BAD_STOPS)
def test_a_bad_where_is_refused_in_one_line_with_the_fix(x, where, error, says):
    with pytest.raises(error, match=re.escape(says)) as caught:
        fl.stop_gradient(x, where)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("x", "scale", "error", "says"), BAD_SCALES)
def test_a_bad_scale_is_refused_in_one_line_with_the_fix(x, scale, error, says):
    with pytest.raises(error, match=re.escape(says)) as caught:
        fl.scale_gradient(x, scale)
    assert "\n" not in str(caught.value)


def movement(optimizer, scale):
    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    start, opt = x.detach().clone(), optimizer([x])
    for _ in range(10):
        opt.zero_grad()
        (fl.scale_gradient(x, scale) ** 2).sum().backward()
        opt.step()
    return (x.detach() - start).abs().sum()


def test_a_scale_slows_sgd_down_and_leaves_adam_as_it_was_as_the_page_says():
    adam = lambda p: torch.optim.Adam(p, lr=1e-3)  # noqa: E731
    sgd = lambda p: torch.optim.SGD(p, lr=1e-3)  # noqa: E731
    assert 0.1 < movement(sgd, 0.1) / movement(sgd, 1.0) < 0.11
    assert 0.999 < movement(adam, 0.1) / movement(adam, 1.0) < 1.001
    slow = lambda p: torch.optim.Adam([{"params": p, "lr": 1e-4}], lr=1e-3)  # noqa: E731
    assert 0.1 < movement(slow, 1.0) / movement(adam, 1.0) < 0.101
