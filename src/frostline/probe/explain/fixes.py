"""What to type for each verdict that is an alarm; where a line is to blame, for the call that stands there."""

from __future__ import annotations

from frostline.probe.explain.verdicts import (
    CUT,
    GRADIENT_LOST,
    LEARNING_RATE_0,
    MOVES_WITHOUT_GRADIENT,
    NOT_FINITE,
    NOT_IN_OPTIMIZER,
    NOT_STEPPED,
    OVERWRITTEN,
    ROUNDS_AWAY,
    UNUSED,
    ZERO_GRADIENT,
)

FIXES = {
    NOT_FINITE: "a smaller learning rate, or a clipped gradient; in place of float16, float32 under `torch.autocast`",
    CUT: "compute that line in torch and with gradients; what is to stay frozen: `requires_grad_(False)`",
    UNUSED: "call the layer in the forward and use what it returns, or take it out of the model",
    NOT_IN_OPTIMIZER: 'make the optimizer last, or `optimizer.add_param_group({"params": layer.parameters()})`',
    NOT_STEPPED: "`optimizer.step()` after `loss.backward()`; in an accumulation, after its last batch",
    GRADIENT_LOST: "in this order: `loss.backward()`, clip to a norm above 0, `optimizer.step()`, `zero_grad()`",
    MOVES_WITHOUT_GRADIENT: "`.grad = None` of what rests, and an optimizer of `[p for p in ... if p.requires_grad]`",
    LEARNING_RATE_0: 'give its group a rate, `optimizer.param_groups[0]["lr"] = 1e-3`; is it a scheduler that says 0?',
    ZERO_GRADIENT: "keep it off the flat part of that call: other initial values, scaled inputs, a smooth function",
    ROUNDS_AWAY: "keep the weights in float32 (`model.float()`) and compute under `torch.autocast`, or raise the rate",
    OVERWRITTEN: "take the write in that line out, or write before the step",
}

_NO_LINE = "follow its gradient to where it ends: `print(fl.explain(model, loss_fn, path_to=name))`"
_IN_RANGE = "keep what comes into that line finite and in range, `torch.nan_to_num(x)` or `x.clamp(-1e4, 1e4)`"
_OVERFLOW = "smaller numbers, such as `x.clamp(max=80)`, or float32 or bfloat16 in place of float16"
_ROOT = "the epsilon under the root: `torch.sqrt(x + 1e-12)`"
_MASKED = "let every row see one key at least: softmax of nothing but -inf is NaN"
_NO_LABELS = "skip a batch in which every label is `ignore_index`: it is a mean over nothing"
_FACTOR = "a factor in that line is all zeros: start one of the factors with random values, the other with zeros"
_STRAIGHT_THROUGH = "pass the gradient straight through: `x + (f(x) - x).detach()`, or use a smooth function"
_KEEP_TENSOR = "keep the tensor: leave `.{call}()` out of that line"
_STACK = "`torch.stack(...)` joins tensors and keeps their gradients; `torch.{call}` copies numbers"
_SOFT = "weight by `softmax` or `F.gumbel_softmax(x, hard=True)`: an index has no gradient"
_DRAW = "`rsample()`, `F.gumbel_softmax`, or a policy gradient, `-log_prob * reward`: what is drawn has no gradient"
_COMPARE = "a soft threshold, `torch.sigmoid((x - threshold) / width)`: a comparison has no gradient"

_CUT_BY = {
    "detach": "leave `.detach()` out of that line; what is to stay frozen: `requires_grad_(False)`",
    "detach_": "`h = h.detach()`, and only where it is meant: `detach_()` cuts every other use too",
    ".data": "leave `.data` out of that line",
    "no_grad": "move the call out of `torch.no_grad()`; what is to stay frozen: `requires_grad_(False)`",
    "inference_mode": "move the call out of `torch.inference_mode()`; what is to stay frozen: `requires_grad_(False)`",
    "stop_gradient": "leave `fl.stop_gradient` out, or say `where=`",
    "nn.Parameter": "use the tensor itself, `torch.func.functional_call(...)`: `nn.Parameter(h)` is a new leaf",
    "checkpoint": "`checkpoint(..., use_reentrant=False)`, or `model.enable_input_require_grads()`",
    "grad": "`torch.autograd.grad(..., create_graph=True)`",
    **dict.fromkeys(("item", "tolist", "numpy"), _KEEP_TENSOR),
    **dict.fromkeys(
        ("float", "int", "index", "array"), "`torch.stack([x])`: a Python number, or an array, has no gradient"
    ),
    **dict.fromkeys(("tensor", "as_tensor", "asarray", "full"), _STACK),
    **dict.fromkeys(("argmax", "argmin", "topk", "argsort", "max", "min", "sort", "one_hot"), _SOFT),
    **dict.fromkeys(("multinomial", "bernoulli", "broadcast_tensors", "poisson"), _DRAW),
    **dict.fromkeys(("gt", "lt", "ge", "le", "eq", "ne"), _COMPARE),
    **dict.fromkeys(("long", "short", "bool", "to", "type"), "stay in floating point: integers have no gradient"),
}
_ZERO_BY = {
    **dict.fromkeys(("round", "floor", "ceil", "sign", "trunc", "heaviside"), _STRAIGHT_THROUGH),
    **dict.fromkeys(("bernoulli", "multinomial", "poisson"), _DRAW),
    **dict.fromkeys(("mul", "linear", "matmul", "bmm", "einsum"), _FACTOR),
    "embedding": "use rows that the batch has: what is not looked up has a gradient of zero",
    "softmax": "a sigmoid for a single class: softmax over one number is always 1",
}
_NOT_FINITE_BY = {
    "log": "`torch.log(x.clamp(min=1e-6))`, or `log_softmax` and `logsigmoid`, which need no log",
    **dict.fromkeys(("sqrt", "rsqrt", "norm", "std"), _ROOT),
    **dict.fromkeys(("div", "truediv", "mean", "reciprocal"), "divide by what is not 0: `x / y.clamp(min=1e-6)`"),
    **dict.fromkeys(("exp", "pow", "square", "sum", "mul"), _OVERFLOW),
    **dict.fromkeys(("softmax", "masked_fill", "scaled_dot_product_attention"), _MASKED),
    **dict.fromkeys(("cross_entropy", "nll_loss"), _NO_LABELS),
}


def fix_for(verdict: str, call: str | None = None) -> str:
    """Return what to type; empty for a verdict that is no alarm.

    Args:
        verdict: One of VERDICTS.
        call: What the line that is to blame calls; None if no line is.
    """
    if call is None:
        return _NO_LINE if verdict == CUT else FIXES.get(verdict, "")
    if verdict == CUT and ".apply" in call:
        return "return a gradient from its `backward`"
    by_call = {CUT: _CUT_BY, ZERO_GRADIENT: _ZERO_BY, NOT_FINITE: _NOT_FINITE_BY}.get(verdict, {})
    otherwise = _IN_RANGE if verdict == NOT_FINITE else FIXES.get(verdict, "")
    return by_call.get(call, otherwise).replace("{call}", call)


def page_of(verdict: str) -> str:
    """Return the page of the documentation on a verdict."""
    return f"docs/verdicts/{verdict.replace(' ', '-')}.md"
