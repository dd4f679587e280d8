"""Every way to cut a gradient: each on the line that ends with `# <- ` and its name in CUTS."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return None


class OneOfTwo(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return x + y

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Unmarked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = x * 2
        ctx.mark_non_differentiable(out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2


class HiddenWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        return F.linear(x, layer.weight, layer.bias)  # <- hidden

    @staticmethod
    def backward(ctx, gradient):
        return gradient.expand(8, 4), None


def detach(h):
    return h.detach()  # <- detach


def detach_in_place(h):
    h = h * 1
    h.detach_()  # <- detach_
    return h


def data(h):
    return h.data  # <- data


def item(h):
    return torch.ones(8, 1) * h.sum().item()  # <- item


def item_and_back(h):
    total = h.sum().item()  # <- item_and_back
    return torch.tensor([total])


def computed_number(h):
    total = h.sum().item()  # <- computed_number
    total = total * 2 + 1
    return torch.ones(8, 1) * total


def to_float(h):
    return torch.ones(8, 1) * float(h.sum())  # <- to_float


def tolist(h):
    return torch.tensor(h.tolist())  # <- tolist


def listed(h):
    values = [row.sum().item() for row in h]  # <- listed
    return torch.FloatTensor(values)


def numpy_detached(h):
    array = h.detach().numpy()  # <- numpy_detached
    return torch.from_numpy(array)


def numpy_under_no_grad(h):
    with torch.no_grad():
        h = h * 1  # <- numpy_under_no_grad
    return torch.as_tensor(np.exp(h.numpy()))


def no_grad(h):
    with torch.no_grad():
        return h * 2  # <- no_grad


def no_grad_around_a_function(h):
    with torch.no_grad():
        return twice(h)  # <- no_grad_around_a_function


def twice(h):
    return h * 2


@torch.no_grad()
def no_grad_decorator(h):
    return twice(h)  # <- no_grad_decorator


def set_grad_enabled(h):
    with torch.set_grad_enabled(False):
        return h * 2  # <- set_grad_enabled


def inference_mode(h):
    with torch.inference_mode():
        h = h * 2  # <- inference_mode
    return h.clone()


def comparison(h):
    return (h > 0).float()  # <- comparison


def argmax(h):
    return h.argmax(1, keepdim=True).float()  # <- argmax


def indices_of_max(h):
    return h.max(1).indices.float()  # <- indices_of_max


def one_hot(h):
    best = h.argmax(1)  # <- one_hot
    return F.one_hot(best, 4).float()


def integer_cast(h):
    return h.long().float()  # <- integer_cast


def integer_to(h):
    return h.to(torch.int32) * 1.0  # <- integer_to


def stop_gradient(h):
    return fl.stop_gradient(h)  # <- stop_gradient


def written_under_no_grad(h):
    out = torch.zeros(8, 4)
    with torch.no_grad():
        out.copy_(h)  # <- written_under_no_grad
    return out


def written_through_data(h):
    out = torch.zeros(8, 4)
    out.data[:] = h  # <- written_through_data
    return out


def data_assigned(h):
    out = torch.zeros(8, 4)
    out.data = h  # <- data_assigned
    return out


def written_through_a_detached_row(h):
    out = torch.zeros(8, 4)
    row = out.detach()[0]
    row += h.sum(0)  # <- written_through_a_detached_row
    return out


def written_through_out(h):
    out = torch.zeros(8, 4)
    with torch.no_grad():
        torch.mul(h, 2, out=out)  # <- written_through_out
    return out


def new_parameter(h):
    return nn.Parameter(h) * 2  # <- new_parameter


def variable(h):
    return torch.autograd.Variable(h.data) * 2  # <- variable


def tensor_of_tensor(h):
    return torch.tensor(h.detach().clone())[0]  # <- tensor_of_tensor


def leaf_again(h):
    h = h.detach()  # <- leaf_again
    h.requires_grad_()
    return h * 2


def function_returning_none(h):
    return Sign.apply(h)  # <- function_returning_none


def function_returning_one_of_two(h):
    return OneOfTwo.apply(torch.ones(8, 4, requires_grad=True), h)  # <- function_returning_one_of_two


def function_without_gradient(h):
    return Unmarked.apply(h)  # <- function_without_gradient


def function_without_backward(h):
    return NoBackward.apply(h)  # <- function_without_backward


def multinomial(h):
    return torch.multinomial(h.softmax(1), 1).float()  # <- multinomial


def gradient_without_graph(h):
    x = torch.ones(8, 4, requires_grad=True)
    (slope,) = torch.autograd.grad((h * x).sum(), x)  # <- gradient_without_graph
    return slope


def functional_call_with_detached(h):
    layer = nn.Linear(4, 4)
    weights = {"weight": h[:4].detach(), "bias": torch.zeros(4)}  # <- functional_call_with_detached
    return torch.func.functional_call(layer, weights, (torch.ones(8, 4),))


def clone_of_a_copy(h):
    return copy.copy(h.detach()).requires_grad_() + 1  # <- clone_of_a_copy


def cut_then_cut_again(h):
    h = h.detach()  # <- cut_then_cut_again
    return (h * 2).data


CUTS = {
    "detach": detach,
    "detach_": detach_in_place,
    "data": data,
    "item": item,
    "item_and_back": item_and_back,
    "computed_number": computed_number,
    "to_float": to_float,
    "tolist": tolist,
    "listed": listed,
    "numpy_detached": numpy_detached,
    "numpy_under_no_grad": numpy_under_no_grad,
    "no_grad": no_grad,
    "no_grad_around_a_function": no_grad_around_a_function,
    "no_grad_decorator": no_grad_decorator,
    "set_grad_enabled": set_grad_enabled,
    "inference_mode": inference_mode,
    "comparison": comparison,
    "argmax": argmax,
    "indices_of_max": indices_of_max,
    "one_hot": one_hot,
    "integer_cast": integer_cast,
    "integer_to": integer_to,
    "stop_gradient": stop_gradient,
    "written_under_no_grad": written_under_no_grad,
    "written_through_data": written_through_data,
    "data_assigned": data_assigned,
    "written_through_a_detached_row": written_through_a_detached_row,
    "written_through_out": written_through_out,
    "new_parameter": new_parameter,
    "variable": variable,
    "tensor_of_tensor": tensor_of_tensor,
    "leaf_again": leaf_again,
    "function_returning_none": function_returning_none,
    "function_returning_one_of_two": function_returning_one_of_two,
    "function_without_gradient": function_without_gradient,
    "function_without_backward": function_without_backward,
    "multinomial": multinomial,
    "gradient_without_graph": gradient_without_graph,
    "functional_call_with_detached": functional_call_with_detached,
    "clone_of_a_copy": clone_of_a_copy,
    "cut_then_cut_again": cut_then_cut_again,
}
