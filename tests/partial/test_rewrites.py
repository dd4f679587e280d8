"""What rewrites a weight after a plan works, or is refused with a way out, and the model works on."""

import contextlib
import copy
import io
import pickle

import pytest
import torch
import torch.nn.utils.parametrize as parametrize
from torch import nn
from torch.nn.utils import parametrizations, prune

import frostline as fl

MASK = torch.arange(24).view(6, 4) % 5 == 0
SELECTIONS = {"rows": fl.rows([1, 3]), "entries": fl.entries(MASK), "all rows": fl.rows(range(6))}
EACH_KIND = pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS.keys())


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


class Tripled(Doubled):
    def forward(self, w):
        return 3 * w

    def right_inverse(self, w):
        return w / 3


def make_linear():
    return nn.Linear(4, 6)


def make_convolution():
    return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 6, 4), nn.Flatten())


def make_table():
    return nn.Sequential(_Ids(), nn.Embedding(6, 4))


class _Ids(nn.Module):
    def forward(self, x):
        return (x.abs() * 7).long() % 6


MAKERS = {"linear": make_linear, "convolution": make_convolution, "table": make_table}


def owner(model):
    return next(module for module in model.modules() if "weight" in module._parameters)


REWRITES = {
    "weight_norm": lambda m: nn.utils.weight_norm(m),
    "weight_norm of the whole": lambda m: nn.utils.weight_norm(m, dim=None),
    "spectral_norm": lambda m: nn.utils.spectral_norm(m),
    "weight_norm by parametrization": lambda m: parametrizations.weight_norm(m),
    "spectral_norm by parametrization": lambda m: parametrizations.spectral_norm(m),
    "a parametrization": lambda m: parametrize.register_parametrization(m, "weight", Doubled()),
    "one with an inverse": lambda m: parametrize.register_parametrization(m, "weight", Tripled()),
    "an unsafe one": lambda m: parametrize.register_parametrization(m, "weight", Doubled(), unsafe=True),
    "pruning by size": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "pruning at random": lambda m: prune.random_unstructured(m, "weight", 0.5),
    "pruning nothing": lambda m: prune.identity(m, "weight"),
    "pruning rows": lambda m: prune.ln_structured(m, "weight", 0.5, 2, 0),
    "pruning by a mask": lambda m: prune.custom_from_mask(m, "weight", torch.ones_like(m.weight)),
    "pruning globally": lambda m: prune.global_unstructured([(m, "weight")], prune.L1Unstructured, amount=0.5),
    "a new parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.ones(6, 4))),
    "a registered parameter": lambda m: m.register_parameter("weight", nn.Parameter(torch.ones(6, 4))),
    "nothing in its place": lambda m: setattr(m, "weight", None),
    "a tensor in its place": lambda m: setattr(m, "weight", torch.ones(6, 4)),
    "a buffer in its place": lambda m: m.register_buffer("weight", torch.ones(6, 4)),
    "the weight of another": lambda m: setattr(m, "weight", nn.Embedding(6, 4).weight),
    "deletion": lambda m: delattr(m, "weight"),
    "a Parameter of it": lambda m: nn.Parameter(m.weight),
    "a Parameter of its data": lambda m: nn.Parameter(m.weight.data, requires_grad=False),
    "a tie": lambda m: setattr(nn.Embedding(6, 4), "weight", m.weight),
    "a list of parameters": lambda m: nn.ParameterList([m.weight]),
    "a dictionary of parameters": lambda m: nn.ParameterDict({"a": m.weight}),
    "from_pretrained": lambda m: nn.Embedding.from_pretrained(m.weight),
    "an embedding over it": lambda m: nn.Embedding(6, 4, _weight=m.weight.detach()),
    "an optimizer of it": lambda m: torch.optim.SGD([m.weight], lr=0.1),
    "fusing a norm": lambda m: nn.utils.fuse_linear_bn_eval(m.eval(), nn.BatchNorm1d(6).eval()),
}
NOT_OF = {"fusing a norm": ("convolution", "table")} | dict.fromkeys(
    ("from_pretrained", "an embedding over it"), ("convolution",)
)
OF_SHAPE = [(rewrite, make) for rewrite in REWRITES for make in MAKERS if make not in NOT_OF.get(rewrite, ())]
OLD = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def learned_by(model, x):
    """Train a step; return the names and rows that moved."""
    plan_parameters = [p for p in model.parameters() if p.requires_grad]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(plan_parameters, lr=0.1)
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    return {name: value != before[name] for name, value in model.state_dict().items()}


def whole_state(model):
    module = owner(model)
    names = [name for name, _ in model.named_parameters()], [name for name, _ in model.named_buffers()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = len(module._forward_pre_hooks), len(module._forward_hooks), len(module._state_dict_hooks)
    return names, type(module), sorted(vars(module)), hooks, list(values), values


@OLD
@EACH_KIND
@pytest.mark.parametrize(("rewrite", "make"), OF_SHAPE)
def test_a_rewrite_is_refused_and_the_model_is_as_before_and_works_on(rewrite, make, selection):
    torch.manual_seed(0)
    model, x = MAKERS[make](), torch.randn(8, 4)
    module = owner(model)
    shape = module.weight.shape
    if make == "convolution":
        selection = fl.rows([1, 3]) if "entries" in str(selection) else selection
    name = next(n for n, _ in model.named_parameters() if n.endswith("weight"))
    fl.train_only(model, {name: selection})
    with torch.no_grad():
        module.weight_learned += 0.5
    before, expected = whole_state(model), model(x).detach()
    error = None
    try:
        REWRITES[rewrite](module)
    except (fl.PartialTensorError, KeyError, TypeError, ValueError) as caught:
        error = caught
    assert error is not None
    if not isinstance(error, fl.PartialTensorError):  # torch's own answer, the same as for a plain module
        with pytest.raises(type(error)):
            REWRITES[rewrite](owner(MAKERS[make]()) if rewrite != "an optimizer of it" else _NotALeaf())
    elif "in its place" not in rewrite:
        assert "fl.merge(model)" in str(error)
    after = whole_state(model)
    assert after[:-1] == before[:-1]
    assert all(torch.equal(after[-1][key], value) for key, value in before[-1].items())
    assert torch.equal(model(x), expected)
    moved = learned_by(model, x)
    assert moved[name].any()
    learns = torch.zeros(shape, dtype=torch.bool)
    if "entries" in str(selection):
        learns = MASK
    else:
        learns[[1, 3] if len(module.weight_learned) == 2 else slice(None)] = True
    assert not (moved[name] & ~learns).any()
    assert not any(value.any() for key, value in moved.items() if key != name)
    now = model.state_dict()[name].clone()
    fl.merge(model)
    assert torch.equal(module.weight, now)
    assert list(model.state_dict()) == before[-2]
    assert isinstance(module.weight, nn.Parameter)
    with contextlib.suppress(Exception):
        REWRITES[rewrite](module)  # after a merge it is the plain module's affair


class _NotALeaf:
    weight = torch.ones(2, requires_grad=True) * 1


@EACH_KIND
@pytest.mark.parametrize(
    "rewrite", ["weight_norm by parametrization", "spectral_norm by parametrization", "pruning rows"]
)
def test_the_way_out_that_the_error_names_works(rewrite, selection):
    torch.manual_seed(0)
    model, x = nn.Sequential(make_linear(), nn.Linear(6, 2)), torch.randn(5, 4)
    fl.train_only(model, {"0.weight": selection})
    with torch.no_grad():
        model[0].weight_learned += 0.5
    values = model[0].weight.detach().clone()
    fl.merge(model)
    REWRITES[rewrite](model[0])
    fl.train_only(model, {"1.weight": fl.rows([1])})
    moved = learned_by(model, x)
    assert moved.pop("1.weight").any(1).tolist() == [False, True]
    moved.pop("0.parametrizations.weight.0._u", None), moved.pop("0.parametrizations.weight.0._v", None)
    assert not any(value.any() for value in moved.values())
    if rewrite == "weight_norm by parametrization":
        torch.testing.assert_close(model[0].weight, values)


@OLD
def test_a_parametrization_of_another_tensor_of_the_module_works():
    model, x = nn.LSTM(4, 3), torch.randn(5, 4)
    fl.train_only(model, {"weight_ih_l0": fl.rows([1]), "bias_hh_l0": fl.everything})
    linear = make_linear()
    fl.train_only(linear, {"weight": fl.rows([1]), "bias": fl.everything})
    nn.utils.weight_norm(linear, "bias", dim=None)
    linear(x).sum().backward()
    assert linear.weight_learned.grad.abs().sum() > 0
    assert linear.bias_g.grad is not None
    model(x)[0].sum().backward()
    assert model.weight_ih_l0_learned.grad.abs().sum() > 0


@pytest.mark.parametrize("learns", ["weight", "bias"])
def test_sync_batch_norm_refuses_a_partial_norm(learns):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(8, 4)
    fl.train_only(model, {f"1.{learns}": fl.rows([1]), "0.weight": fl.rows([2])})
    with torch.no_grad():
        getattr(model[1], f"{learns}_learned").add_(0.5)
    expected, values = model.eval()(x).detach(), model.state_dict()
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(fl.PartialTensorError, match=r"fl\.merge\(model\)"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    converted = model
    assert [name for name, _ in model.named_parameters()] == before
    torch.testing.assert_close(converted.eval()(x), expected)
    moved = learned_by(converted, x)
    assert moved[f"1.{learns}"].nonzero().flatten().tolist() == [1]
    assert moved["0.weight"].any(1).nonzero().flatten().tolist() == [2]
    assert sum(value.any() for value in moved.values()) == 2
    assert values.keys() == converted.state_dict().keys()


def test_a_norm_that_learns_whole_beside_a_partial_tensor_is_converted():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(8, 4)
    fl.train_only(model, {"1.*": fl.everything, "0.weight": fl.rows([2])})
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    assert type(model[1]) is nn.SyncBatchNorm
    assert learned_by(model, x)["0.weight"].any(1).nonzero().flatten().tolist() == [2]


@contextlib.contextmanager
def converting_by(how):
    """Set one of torch's global flags on how parameters are converted."""
    flag = torch.__future__
    get, set_ = {
        "swap": (flag.get_swap_module_params_on_conversion, flag.set_swap_module_params_on_conversion),
        "overwrite": (flag.get_overwrite_module_params_on_conversion, flag.set_overwrite_module_params_on_conversion),
        "data": (lambda: False, lambda value: None),
    }[how]
    before = get()
    set_(True)
    try:
        yield
        assert get() or how == "data"  # as the user left it
    finally:
        set_(before)


GIVEN = torch.linspace(-2, 2, 24).view(6, 4)
CONVERSIONS = {
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "to and back": lambda m: m.double().float(),
    "to a dtype": lambda m: m.to(torch.bfloat16),
    "to the same": lambda m: m.to(torch.float32),
    "cpu": lambda m: m.cpu(),
    "load": lambda m: m.load_state_dict({"weight": GIVEN, "bias": torch.ones(6)}),
    "load part of it": lambda m: m.load_state_dict({"bias": torch.ones(6)}, strict=False),
    "load, assigned": lambda m: m.load_state_dict({"weight": GIVEN.clone(), "bias": torch.ones(6)}, assign=True),
    "load half, assigned": lambda m: m.load_state_dict(
        {"weight": GIVEN.half(), "bias": torch.ones(6).half()}, assign=True
    ),
    "share": lambda m: m.share_memory(),
    "to meta and back": lambda m: (
        m.to("meta").to_empty(device="cpu").load_state_dict({"weight": GIVEN, "bias": torch.ones(6)})
    ),
}


@EACH_KIND
@pytest.mark.parametrize("how", ["data", "swap", "overwrite"])
@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS.keys())
def test_every_conversion_gives_what_the_merged_model_gives(convert, how, selection):
    torch.manual_seed(0)
    model, x = make_linear(), torch.randn(5, 4)
    fl.train_only(model, {"weight": selection})
    with torch.no_grad():
        model.weight_learned += 0.5
    plain = copy.deepcopy(model)
    fl.merge(plain)
    with converting_by(how):
        convert(model)
    convert(plain)
    expected = plain.state_dict()
    assert [(name, value.dtype) for name, value in model.state_dict().items()] == [
        (name, value.dtype) for name, value in expected.items()
    ]
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.weight.detach().clone(), expected["weight"])
    x = x.to(model.weight.dtype)
    torch.testing.assert_close(model(x), plain(x))
    weight = model.weight
    moved = learned_by(model, x)["weight"]
    assert moved.any()
    assert not (moved & ~_learns(selection)).any()
    assert torch.equal(weight.detach().clone(), model.state_dict()["weight"])
    fl.merge(model)
    assert type(model) is nn.Linear


def _learns(selection):
    if selection is SELECTIONS["entries"]:
        return MASK
    return torch.ones(6, 4, dtype=torch.bool) if selection is SELECTIONS["all rows"] else _ROWS


_ROWS = torch.zeros(6, 4, dtype=torch.bool).index_fill(0, torch.tensor([1, 3]), True)


@EACH_KIND
@pytest.mark.parametrize("how", ["data", "swap", "overwrite"])
@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_share_nothing_and_train_on(copied, how, selection):
    torch.manual_seed(0)
    model, x = make_linear(), torch.randn(5, 4)
    fl.train_only(model, {"weight": selection})
    held = model.weight
    with converting_by(how):
        if copied == "deepcopy":
            twin = copy.deepcopy(model)
        elif copied == "pickle":
            twin = pickle.loads(pickle.dumps(model))
        else:
            file = io.BytesIO()
            torch.save(model, file)
            twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    before = model.state_dict()["weight"].clone()
    assert torch.equal(twin(x), model(x))
    moved = learned_by(twin, x)["weight"]
    assert moved.any()
    assert not (moved & ~_learns(selection)).any()
    assert torch.equal(model.state_dict()["weight"], before)
    assert torch.equal(held.detach().clone(), before)
    with torch.no_grad():
        twin.weight.fill_(3.0)
    assert torch.equal(held.detach().clone(), before)
    assert (twin.state_dict()["weight"] == 3).all()


HELD = {
    "the weight": lambda w: w,
    "detached": lambda w: w.detach(),
    "a row": lambda w: w[1],
    "its data": lambda w: w.data,
}


def raises(read):
    try:
        read()
    except fl.PartialTensorError:
        return True
    return False


@pytest.mark.parametrize("make", [make_linear, lambda: nn.Embedding(6, 4)])
@pytest.mark.parametrize("hold", HELD.values(), ids=HELD.keys())
@pytest.mark.parametrize("convert", [n for n in CONVERSIONS if n not in ("share", "to meta and back")])
def test_what_is_held_over_a_conversion_is_current_or_raises(convert, hold, make):
    torch.manual_seed(0)
    model = make()
    fl.train_only(model, {"weight": fl.rows([1, 3])})
    held = hold(model.weight)
    given = {"weight": GIVEN.clone()} | ({"bias": torch.ones(6)} if hasattr(model, "bias") else {})
    if convert.startswith("load"):
        given = {
            k: v.half() if "half" in convert else v for k, v in given.items() if "part" not in convert or k == "bias"
        }
        model.load_state_dict(given, assign="assigned" in convert, strict=False)
    else:
        CONVERSIONS[convert](model)
    with torch.no_grad():
        model.weight_learned += 1
    if raises(lambda: held.detach().clone()):
        with torch.no_grad(), pytest.raises(fl.PartialTensorError, match="Take it from the module again"):
            held.fill_(7.0)
        return
    assert torch.equal(held.detach().clone(), hold(model.weight).detach())
    with torch.no_grad():
        held.fill_(7.0)
    assert (hold(model.weight) == 7).all()


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
@pytest.mark.filterwarnings("ignore:.*FullyShardedDataParallel.*:FutureWarning")
def test_fsdp1_is_refused_and_leaves_the_model_whole():
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, x = make_linear(), torch.randn(5, 4)
        fl.train_only(model, {"weight": fl.rows([1, 3])})
        before = whole_state(model)
        with pytest.raises(fl.PartialTensorError, match="fully_shard"):
            FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
        after = whole_state(model)
        assert (after[0], after[4]) == (before[0], before[4])
        assert all(torch.equal(after[-1][key], value) for key, value in before[-1].items())
        assert learned_by(model, x)["weight"].any(1).nonzero().flatten().tolist() == [1, 3]
        fl.merge(model)
        assert type(model) is nn.Linear
    finally:
        torch.distributed.destroy_process_group()
