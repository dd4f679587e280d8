"""A weight and its views, held by other code, behave as plain tensors do: saved, printed, transformed, in threads."""

import copy
import io
import math
import multiprocessing.reduction
import pickle
import threading

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import frostline as fl

X, IDS = torch.linspace(-1, 1, 20).view(5, 4), torch.arange(6)
MAKERS = {"head": lambda: nn.Linear(4, 6, bias=False), "table": lambda: nn.Embedding(6, 4)}
EACH_MODULE = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
HELD = {
    "the weight": lambda w: w,
    "detached": lambda w: w.detach(),
    "its data": lambda w: w.data,
    "a row": lambda w: w[1],
    "a detached row": lambda w: w.detach()[1],
    "turned": lambda w: w.t(),
}
EACH_HELD = pytest.mark.parametrize("hold", HELD.values(), ids=HELD.keys())


def trained(make):
    """A module after a step of which its memory need not know yet, and a plain one of the same values."""
    torch.manual_seed(0)
    module = make()
    fl.train_only(module, {"weight": fl.rows([1, 3])})
    optimizer = torch.optim.SGD([module.weight_learned], lr=0.1)
    module(IDS if isinstance(module, nn.Embedding) else X).square().sum().backward()
    optimizer.step()
    plain = make()
    plain.load_state_dict(copy.deepcopy(module).state_dict())
    return module, plain


def saved(value):
    file = io.BytesIO()
    torch.save({"a": value}, file)
    return torch.load(io.BytesIO(file.getvalue()))["a"]


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda v: pickle.loads(pickle.dumps(v)),
    "torch.save": saved,
    "safetensors": lambda v: safetensors.torch.load(safetensors.torch.save({"a": v.detach().contiguous()}))["a"],
    "a process": lambda v: pickle.loads(bytes(multiprocessing.reduction.ForkingPickler.dumps(v.detach()))),
    "in a dictionary": lambda v: copy.deepcopy({"a": [v]})["a"][0],
    "numpy": lambda v: torch.from_numpy(np.asarray(v.detach()).copy()),
    "dlpack": lambda v: torch.from_dlpack(v.detach()),
    "list": lambda v: torch.tensor(v.tolist()),
}


@EACH_MODULE
@EACH_HELD
@pytest.mark.parametrize("copy_", COPIES.values(), ids=COPIES.keys())
def test_a_copy_of_what_is_held_has_its_values_and_is_a_plain_tensor(copy_, hold, make):
    module, plain = trained(make)
    held = hold(module.weight)
    if held.grad_fn is not None and held.ndim == 1 and copy_ in (copy.deepcopy, COPIES["in a dictionary"]):
        held = held.detach()  # torch deep-copies no tensor inside a graph
    if held.grad_fn is not None and copy_ in (copy.deepcopy, COPIES["in a dictionary"]) and hold is HELD["turned"]:
        held = held.detach()
    result = copy_(held)
    assert torch.equal(result.detach(), hold(plain.weight).detach())
    if copy_ is not copy.copy:
        assert not isinstance(result, fl.PartialTensor)
        assert (result + 0).sum().isfinite()


PRINTS = {
    "a scalar": lambda w: f"{w[0, 0]:.3f}",
    "a detached scalar": lambda w: f"{w.detach()[1, 0]:.3f}",
    "a scalar of data": lambda w: f"{w.data[1][2]:+.2e}",
    "percent": lambda w: "%.3f" % w.detach()[1, 0].item(),  # noqa: UP031
    "a norm": lambda w: f"{w.norm():.3f}",
    "a row": lambda w: str(w.detach()[1].tolist()),
    "rounded": lambda w: round(w.detach()[1, 1].item(), 3),
    "float": lambda w: math.floor(float(w.detach()[1, 0]) * 1000),
    "truth": lambda w: bool(w[1, 0] > 0),
    "index": lambda w: "abc"[int(w.detach()[1, 0].abs()) % 3],
    "length": lambda w: (len(w), len(w[1]), w.numel(), w[1].stride()),
    "iteration": lambda w: [f"{row.sum():.3f}" for row in w],
    "membership": lambda w: bool(w[0, 0] in w),
}


@EACH_MODULE
@pytest.mark.parametrize("print_", PRINTS.values(), ids=PRINTS.keys())
def test_it_prints_and_converts_as_a_plain_weight(print_, make):
    module, plain = trained(make)
    assert print_(module.weight) == print_(plain.weight)


TRANSFORMS = {
    "jacrev of a product": lambda w: torch.func.jacrev(lambda x: x @ w.t())(X[0]),
    "jacrev of linear": lambda w: torch.func.jacrev(lambda x: F.linear(x, w))(X[0]),
    "jacfwd": lambda w: torch.func.jacfwd(lambda x: x @ w.t())(X[0]),
    "grad": lambda w: torch.func.grad(lambda x: (x @ w.t()).tanh().sum())(X[0]),
    "hessian": lambda w: torch.func.hessian(lambda x: (x @ w.t()).tanh().sum())(X[0]),
    "vmap over x": lambda w: torch.vmap(lambda x: x @ w.t())(X),
    "vmap over rows": lambda w: torch.vmap(lambda row: row.square().sum())(w),
    "grad of itself": lambda w: torch.func.grad(lambda v: v.square().sum())(w.detach()),
    "autograd's hessian": lambda w: torch.autograd.functional.hessian(lambda x: (x @ w.t()).tanh().sum(), X[0]),
}


@EACH_MODULE
@pytest.mark.parametrize("hold", [HELD["the weight"], HELD["detached"]], ids=["weight", "detached"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_a_transform_that_captured_it_computes_what_it_does_of_a_plain_weight(transform, hold, make):
    module, plain = trained(make)
    held = hold(module.weight)
    torch.testing.assert_close(transform(held).detach(), transform(hold(plain.weight)).detach())
    with torch.no_grad():
        module.weight_learned += 1
        plain.weight[[1, 3]] += 1
    torch.testing.assert_close(transform(held).detach(), transform(hold(plain.weight)).detach())


def refusal(call):
    """Return what is said if `call` raises; compilers wrap errors in theirs."""
    try:
        call()
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo asks
@EACH_MODULE
@EACH_HELD
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("how", ["optimizer", "data"])
def test_a_compiled_function_that_captured_it_is_current_or_refused(how, backend, hold, make):
    module, _ = trained(make)
    held = hold(module.weight)
    turns = hold is HELD["turned"]
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: x @ (held if turns else held.t()) if held.ndim == 2 else x @ held, backend=backend
    )
    for _ in range(2):
        says = refusal(lambda: compiled(X))
        if says:
            assert "partial tensor" in says
            return
        result = compiled(X)
        now = hold(module.state_dict()["weight"].clone())
        torch.testing.assert_close(result.detach(), X @ (now if turns or now.ndim == 1 else now.t()))
        if how == "data":
            module.weight_learned.data.add_(1)
        else:
            module.weight_learned.grad = torch.ones_like(module.weight_learned)
            torch.optim.SGD([module.weight_learned], lr=1.0).step()


@EACH_MODULE
def test_a_model_can_be_evaluated_and_saved_by_other_threads_while_it_trains(make):
    module, _ = trained(make)
    x, errors, done = IDS if isinstance(module, nn.Embedding) else X, [], threading.Event()
    before = module.state_dict()["weight"].clone()

    def evaluate():
        try:
            while not done.is_set():
                with torch.no_grad():
                    assert module(x).isfinite().all()
                module.weight.detach().clone()
                module.state_dict()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=evaluate) for _ in range(3)]
    [thread.start() for thread in threads]
    optimizer = torch.optim.AdamW([module.weight_learned], lr=1e-3)
    try:
        for _ in range(200):
            optimizer.zero_grad()
            (module(x).sum() + (module.weight @ X.t()).square().sum()).backward()
            optimizer.step()
    finally:
        done.set()
        [thread.join() for thread in threads]
    assert errors == []
    changed = (module.state_dict()["weight"] != before).any(1)
    assert changed.nonzero().flatten().tolist() == [1, 3]


LAYOUTS = {
    "turned": lambda: torch.randn(4, 6).t(),
    "a slice of a larger one": lambda: torch.randn(8, 9)[1:7, 2:6],
    "every second row": lambda: torch.randn(12, 4)[::2],
}


@EACH_MODULE
@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_weight_that_is_not_contiguous_learns_its_rows_in_place(lay, make):
    module = make()
    parameter = module.weight = nn.Parameter(lay())
    before = parameter.detach().clone()
    fl.train_only(module, {"weight": fl.rows([1, 3])})
    optimizer = torch.optim.SGD([module.weight_learned], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (
            module(IDS if isinstance(module, nn.Embedding) else X).square().sum() + module.weight.square().sum()
        ).backward()
        optimizer.step()
        assert torch.equal(module.state_dict()["weight"], parameter.detach())
        assert torch.equal(parameter.detach()[[1, 3]], module.weight_learned.detach())
    assert (parameter.detach() != before).any(1).nonzero().flatten().tolist() == [1, 3]
    assert module.weight.stride() == parameter.stride()


def test_a_convolution_can_change_its_memory_format_between_steps():
    module, x = nn.Conv2d(3, 6, 3), torch.randn(1, 3, 5, 5)
    fl.train_only(module, {"weight": fl.rows([1, 3])})
    optimizer, before = torch.optim.SGD([module.weight_learned], lr=0.1), module.state_dict()["weight"].clone()
    for memory_format in (torch.channels_last, torch.contiguous_format):
        module.to(memory_format=memory_format)
        module(x).square().sum().backward()
        optimizer.step()
        assert module.weight.is_contiguous(memory_format=memory_format)
        assert torch.equal(module._parameters["weight"].detach()[[1, 3]], module.weight_learned.detach())
        changed = module.state_dict()["weight"] != before
        assert changed.flatten(1).any(1).nonzero().flatten().tolist() == [1, 3]


@EACH_MODULE
@pytest.mark.parametrize(
    "lay",
    [lambda: torch.randn(9).as_strided((6, 4), (1, 1)), lambda: torch.randn(1, 4).expand(6, 4)],
    ids=["strided", "expanded"],
)
def test_a_weight_whose_rows_share_memory_is_refused_or_keeps_its_frozen_rows(lay, make):
    module = make()
    module.weight = nn.Parameter(lay())
    before, kind = module.weight.detach().clone(), type(module)
    try:
        fl.train_only(module, {"weight": fl.rows([1])})
    except fl.PartialTensorError:
        assert type(module) is kind
        return
    optimizer = torch.optim.SGD([module.weight_learned], lr=0.1)
    module(IDS if isinstance(module, nn.Embedding) else X).square().sum().backward()
    optimizer.step()
    changed = module.state_dict()["weight"] != before
    assert changed.any(1).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_float32_rows_of_a_table_in_a_small_dtype_are_saved_and_merged(dtype):
    module = nn.Embedding(6, 4)
    module.weight = nn.Parameter(torch.randn(6, 4).to(dtype), requires_grad=False)
    before = module.weight.detach().float()
    fl.train_only(module, {"weight": fl.rows([1, 3], dtype=torch.float32)})
    optimizer = torch.optim.SGD([module.weight_learned], lr=0.5)
    module(IDS).float().square().sum().backward()
    optimizer.step()
    expected = before.clone()
    expected[[1, 3]] = module.weight_learned.detach().to(dtype).float()
    assert torch.equal(module.state_dict()["weight"].float(), expected)
    assert (expected != before).any(1).nonzero().flatten().tolist() == [1, 3]
    fl.merge(module)
    assert torch.equal(module.weight.detach().float(), expected)


@EACH_MODULE
def test_an_average_of_the_models_weights_is_that_of_whole_models(make):
    module, plain = trained(make)
    x = IDS if isinstance(module, nn.Embedding) else X
    models, averages = (module, plain), []
    before = module.state_dict()["weight"].clone()
    for model in models:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        learned = getattr(model, "weight_learned", model.weight)
        optimizer = torch.optim.SGD([learned], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            if model is plain:
                plain.weight.grad[[0, 2, 4, 5]] = 0
            optimizer.step()
            average.update_parameters(model)
        averages.append(average)
    values = [average.module.state_dict()["weight"] for average in averages]
    torch.testing.assert_close(*values)
    assert torch.equal(values[0][[0, 2, 4, 5]], before[[0, 2, 4, 5]])
    assert (values[0][[1, 3]] != before[[1, 3]]).any()
    torch.testing.assert_close(averages[0](x), averages[1](x))
    torch.testing.assert_close(averages[0].module.weight.detach().clone(), values[1])


@EACH_MODULE
@pytest.mark.parametrize("write", ["copy_ through the state dict", "data", "lerp_"])
def test_a_teacher_that_follows_by_writes_has_the_values_of_a_plain_one(write, make):
    module, plain = trained(make)
    teacher = copy.deepcopy(module)
    fl.train_only(module, {"weight": fl.rows([1, 3])})
    expected = teacher.state_dict()["weight"].clone()
    for _ in range(3):
        with torch.no_grad():
            module.weight_learned += 1
        student = module.state_dict()["weight"].clone()
        with torch.no_grad():
            if write == "data":
                teacher.weight.data.mul_(0.5).add_(module.weight.data, alpha=0.5)
            elif write == "lerp_":
                teacher.weight.lerp_(module.weight, 0.5)
            else:
                for mine, theirs in zip(teacher.state_dict().values(), module.state_dict().values(), strict=True):
                    mine.copy_(mine * 0.5 + theirs * 0.5)
        expected = expected * 0.5 + student * 0.5
        torch.testing.assert_close(teacher.weight.detach().clone(), expected)
        torch.testing.assert_close(teacher.weight_learned.detach(), expected[[1, 3]])
    assert (expected != plain.weight).any(1).nonzero().flatten().tolist() == [1, 3]
