"""A module with a partial tensor keeps its identity, keys, ties, copies and uses."""

import copy
import io
import pickle
import pickletools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import frostline as fl

IDS = torch.tensor([[0, 3, 3, 7], [9, 1, 3, 0]])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.head = nn.Linear(6, 12)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.embed(ids)))


class Doubling(nn.Embedding):
    """A subclass with a forward of its own, which must keep running."""

    def forward(self, ids):
        return 2 * super().forward(ids)


@pytest.fixture
def tied():
    torch.manual_seed(0)
    return Tied()


def learn(model, amount=1.0):
    """Move every learned entry, so that a lost part would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(amount)


def test_classes_hooks_and_forward_of_a_subclass_stay():
    module = Doubling(12, 6)
    expected, seen = module(IDS), []
    module.register_forward_hook(lambda *_: seen.append("hook"))
    fl.train_only(module, {"weight": fl.rows([3])})
    assert torch.equal(module(IDS), expected)
    assert isinstance(module, Doubling)
    assert type(module).__name__ == "Doubling"
    assert seen == ["hook"]
    learn(module)
    assert not torch.equal(module(IDS), expected)


def test_learned_parts_are_exactly_the_parameters_that_require_gradients(tied):
    plan = fl.train_only(tied, {"embed.weight": fl.rows([3, 1]), "head.bias": fl.everything})
    names = {name for name, parameter in tied.named_parameters() if parameter.requires_grad}
    assert names == {"embed.weight_learned", "head.bias"}
    assert [id(p) for p in plan.parameters()] == [id(p) for p in tied.parameters() if p.requires_grad]
    assert plan.learned == sum(p.numel() for p in plan.parameters()) == 2 * 6 + 12


def test_tied_weights_stay_one_tensor_in_two_parts(tied):
    fl.train_only(tied, {"head.weight": fl.rows([3, 1])})
    assert tied.embed.weight_learned is tied.head.weight_learned
    learn(tied)
    assert torch.equal(tied.embed.weight.detach().clone(), tied.head.weight.detach().clone())
    fl.merge(tied)
    assert tied.embed.weight is tied.head.weight


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_module_does_not_keep_using_the_weights_it_cached(recurrent):
    torch.manual_seed(0)
    module, x = recurrent(5, 4), torch.randn(3, 2, 5)
    before = module(x)[0]
    plan = fl.train_only(module, {"weight_ih_l0": fl.rows([0, 2]), "bias_hh_l0": fl.rows([1])})
    assert torch.equal(module(x)[0], before)
    module(x)[0].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in plan.parameters())
    learn(module)
    changed = module(x)[0]
    assert not torch.equal(changed, before)
    assert torch.equal(module.double().float()(x)[0], changed)
    assert torch.equal(copy.deepcopy(module)(x)[0], changed)
    fl.merge(module)
    assert type(module) is recurrent
    assert torch.equal(module(x)[0], changed)


def test_attention_and_a_transformer_layer_see_what_was_learned():
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), torch.randn(2, 3, 8)
    layer.eval()
    with torch.no_grad():
        before = layer(x)
    fl.train_only(
        layer, {"self_attn.in_proj_weight": fl.rows([0, 9]), "linear1.weight": fl.entries(torch.ones(16, 8) > 0)}
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(x), before)
        learn(layer)
        changed = layer(x)
    assert not torch.allclose(changed, before)
    fl.merge(layer)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), changed)


def test_a_module_shared_by_two_parents_is_one_tensor_under_two_names():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"left": nn.Sequential(shared), "right": nn.Sequential(shared)})
    plan = fl.train_only(model, {"right.0.weight": fl.rows([2])})
    assert [line.name for line in plan.lines] == ["left.0.weight", "left.0.bias"]
    assert plan.lines[0].tied == ("right.0.weight",)
    assert len(plan.parameters()) == 1
    learn(model)
    fl.merge(model)
    assert model["left"][0] is model["right"][0]


def test_two_partial_tensors_in_one_module_both_learn():
    module = nn.Bilinear(3, 4, 5)
    plan = fl.train_only(module, {"weight": fl.rows([1]), "bias": fl.entries(torch.arange(5) > 2)})
    module(torch.randn(2, 3), torch.randn(2, 4)).pow(2).sum().backward()
    assert [tuple(p.shape) for p in plan.parameters()] == [(1, 3, 4), (2,)]
    assert all(p.grad.abs().sum() > 0 for p in plan.parameters())


def test_parameters_in_a_list_and_a_dict_can_be_partial():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.items = nn.ParameterList([torch.randn(4, 3), torch.randn(2)])
            self.named = nn.ParameterDict({"w": torch.randn(4, 3)})

        def forward(self, x):
            return F.linear(x, self.items[0]) + F.linear(x, self.named["w"]) + self.items[1].sum()

    model, x = Holder(), torch.randn(2, 3)
    expected = model(x)
    plan = fl.train_only(model, {"items.0": fl.rows([1, 2]), "named.w": fl.rows([0])})
    torch.testing.assert_close(model(x), expected)
    assert len(model.items) == 2
    model(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in plan.parameters())


# Keys and values ------------------------------------------------------------------------------------------------------


def test_state_dict_has_the_plain_keys_and_the_full_values(tied):
    keys = list(tied.state_dict())
    fl.train_only(tied, {"embed.weight": fl.rows([3, 1]), "head.bias": fl.entries(torch.arange(12) == 5)})
    learn(tied)
    state = tied.state_dict()
    assert list(state) == keys
    plain = Tied()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(IDS), tied(IDS), rtol=1e-6, atol=1e-6)
    assert torch.equal(plain.embed.weight, tied.embed.weight.detach().clone())


@pytest.mark.parametrize("assign", [False, True])
def test_a_plain_checkpoint_loads_into_both_parts(tied, assign):
    torch.manual_seed(1)
    other = Tied()
    fl.train_only(tied, {"embed.weight": fl.rows([3, 1]), "head.bias": fl.rows([4])})
    result = tied.load_state_dict(other.state_dict(), assign=assign)
    assert result.missing_keys == result.unexpected_keys == []
    torch.testing.assert_close(tied(IDS), other(IDS), rtol=1e-6, atol=1e-6)
    assert {n for n, p in tied.named_parameters() if p.requires_grad} >= {"embed.weight_learned", "head.bias_learned"}
    assert not any(p.requires_grad for n, p in tied.named_parameters() if not n.endswith("_learned"))


def test_a_checkpoint_that_does_not_fit_is_reported_under_the_plain_key_alone(tied):
    fl.train_only(tied, {"embed.weight": fl.rows([3, 1])})
    state = tied.state_dict()
    state["embed.weight"] = torch.zeros(5, 6)
    del state["head.bias"]
    with pytest.raises(RuntimeError, match=r"size mismatch for embed.weight") as error:
        tied.load_state_dict(state)
    assert "_learned" not in str(error.value)
    assert tied.load_state_dict({}, strict=False).missing_keys == ["embed.weight", "head.weight", "head.bias"]


def test_a_write_after_state_dict_does_not_reach_back_into_the_callers_dict(tied):
    fl.train_only(tied, {"embed.weight": fl.rows([3])})
    state = {"embed.weight": torch.zeros(12, 6), "head.weight": torch.zeros(12, 6), "head.bias": torch.zeros(12)}
    tied.load_state_dict(state)
    assert list(state) == ["embed.weight", "head.weight", "head.bias"]
    learn(tied)
    assert state["embed.weight"].abs().sum() == 0


# Copies, devices, dtypes ----------------------------------------------------------------------------------------------


def test_deepcopy_and_a_saved_module_are_independent_and_alike(tied):
    fl.train_only(tied, {"embed.weight": fl.rows([3, 1])})
    learn(tied)
    file = io.BytesIO()
    torch.save(tied, file)
    file.seek(0)
    for twin in (copy.deepcopy(tied), torch.load(file, weights_only=False)):
        assert torch.equal(twin(IDS), tied(IDS))
        assert twin.embed.weight_learned is twin.head.weight_learned
        assert twin.embed.weight_learned is not tied.embed.weight_learned
        learn(twin)
        assert not torch.equal(twin(IDS), tied(IDS))
        fl.merge(twin)
        assert type(twin.embed) is nn.Embedding


def test_a_copy_of_the_tensor_itself_is_a_plain_tensor(tied):
    fl.train_only(tied, {"embed.weight": fl.rows([3, 1])})
    learn(tied)
    full = tied.embed.weight.detach().clone()
    twin = copy.deepcopy(tied.embed.weight)
    file = io.BytesIO()
    torch.save(tied.embed.weight, file)
    file.seek(0)
    for plain in (twin, torch.load(file, weights_only=True)):
        assert type(plain) is torch.Tensor
        assert torch.equal(plain, full)


def test_pickles_refer_to_the_package_and_to_no_file_in_it(tied, tmp_path):
    torch.eye(4).numpy().tofile(tmp_path / "table")
    tied.mapped = fl.mapped_embedding(tmp_path / "table", shape=(4, 4))
    tied.norm = nn.BatchNorm1d(6)
    selections = {"embed.weight": fl.rows([3]), "head.bias": fl.entries(torch.arange(12) > 8), "mapped.*": fl.rows([2])}
    plan = fl.train_only(tied, selections, freeze_running_stats=True)
    content = pickle.dumps((tied, plan, selections, fl.everything), protocol=2)  # in 2 a name is one argument
    names = {argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == "GLOBAL"}
    ours = {name.rsplit(" ", 1)[0] for name in names if name.startswith("frostline")}
    assert ours == {"frostline.partial"}
    again, plan_again, _, _ = pickle.loads(content)
    assert repr(plan_again) == repr(plan)
    assert [type(module).__name__ for module in again.modules()] == [type(module).__name__ for module in tied.modules()]
    assert all(torch.equal(value, tied.state_dict()[name]) for name, value in again.state_dict().items())


def test_moving_to_another_dtype_and_back_moves_both_parts(tied):
    fl.train_only(tied, {"embed.weight": fl.rows([3, 1])})
    learn(tied)
    expected = tied(IDS)
    assert tied.double()(IDS).dtype == torch.float64
    assert tied.embed.weight_learned.dtype == torch.float64
    assert tied.embed.weight_learned is tied.head.weight_learned
    torch.testing.assert_close(tied.float()(IDS), expected)


def test_a_model_on_the_meta_device_can_be_planned_and_filled_later():
    with torch.device("meta"):
        model = nn.Embedding(12, 6)
    fl.train_only(model, {"weight": fl.rows([3, 1])})
    model.to_empty(device="cpu")
    model.load_state_dict({"weight": torch.arange(72.0).view(12, 6)})
    assert torch.equal(model(IDS), torch.arange(72.0).view(12, 6)[IDS])
    learn(model)
    assert torch.equal(
        model(torch.tensor([3, 4])), torch.arange(72.0).view(12, 6)[[3, 4]] + torch.tensor([[1.0], [0.0]])
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_float32_part_over_a_half_table_keeps_updates_that_half_would_round_away(half):
    torch.manual_seed(0)
    moved = {}
    for dtype in (None, torch.float32):
        model = nn.Embedding(12, 6).to(half)
        nn.init.ones_(model.weight)
        plan = fl.train_only(model, {"weight": fl.rows([3, 1], dtype=dtype)})
        optimizer = torch.optim.AdamW(plan.parameters(), lr=1e-5, weight_decay=0.0)
        for _ in range(200):
            optimizer.zero_grad()
            out = model(IDS)
            assert out.dtype == half
            out.float().sum().backward()
            optimizer.step()
        fl.merge(model)
        assert model.weight.dtype == half
        moved[dtype] = (model.weight != 1).any(1).nonzero().flatten().tolist()
    assert moved == {None: [], torch.float32: [1, 3]} if half == torch.bfloat16 else moved[torch.float32] == [1, 3]


# Functional transforms ------------------------------------------------------------------------------------------------


def test_functional_call_grad_and_vmap_agree_with_backward(tied):
    fl.train_only(tied, {"embed.weight": fl.rows([3, 1]), "head.bias": fl.rows([4])})
    learned = {name: p for name, p in tied.named_parameters() if p.requires_grad}

    def loss(parameters, ids):
        return functional_call(tied, parameters, (ids,)).pow(2).sum()

    tied(IDS).pow(2).sum().backward()
    gradients = grad(loss)(learned, IDS)
    each = vmap(grad(loss), (None, 0))(learned, IDS)
    for name, parameter in learned.items():
        torch.testing.assert_close(gradients[name], parameter.grad)
        torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=1e-5, atol=1e-5)
        assert parameter.grad.abs().sum() > 0


def test_an_ensemble_of_partial_models_runs_under_vmap(tied):
    models = [copy.deepcopy(tied) for _ in range(3)]
    for amount, model in enumerate(models):
        fl.train_only(model, {"embed.weight": fl.rows([3, 1])})
        learn(model, amount)
    parameters, buffers = stack_module_state(models)

    def run(parameters, buffers):
        return functional_call(models[0], (parameters, buffers), (IDS,))

    outputs = vmap(run)(parameters, buffers)
    for model, output in zip(models, outputs, strict=True):
        torch.testing.assert_close(output, model(IDS))
    assert not torch.equal(outputs[0], outputs[1])


def test_double_backward_through_a_partial_lookup_and_head(tied):
    tied.double()
    fl.train_only(tied, {"embed.weight": fl.rows([3, 1])})

    def run(learned):
        return functional_call(tied, {"embed.weight_learned": learned, "head.weight_learned": learned}, (IDS,))

    assert torch.autograd.gradgradcheck(run, tied.embed.weight_learned.detach().clone().requires_grad_())


def test_under_autocast_both_products_have_its_dtype(tied):
    fl.train_only(tied, {"embed.weight": fl.rows([3, 1])})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tied(IDS)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert tied.embed.weight.grad.abs().sum() > 0


def test_export_is_refused_with_the_way_out(tied):
    fl.train_only(tied, {"embed.weight": fl.rows([3, 1])})
    with pytest.raises(
        fl.PartialTensorError, match=r"torch.export cannot trace a partial tensor. Call fl.merge\(model\)"
    ):
        torch.export.export(tied, (IDS,), strict=False)
    fl.merge(tied)
    exported = torch.export.export(tied, (IDS,), strict=False).module()
    torch.testing.assert_close(exported(IDS), tied(IDS))


def test_a_parametrized_weight_learns_in_part_if_the_plan_comes_after_and_is_refused_before():
    torch.manual_seed(0)
    module, x = nn.Linear(3, 4), torch.ones(3)
    nn.utils.parametrizations.weight_norm(module)
    expected = module(x)
    plan = fl.train_only(module, {"parametrizations.weight.original1": fl.rows([1])})
    assert torch.equal(module(x), expected)
    module(x).sum().backward()
    assert [tuple(p.shape) for p in plan.parameters()] == [(1, 3)]
    assert plan.parameters()[0].grad.abs().sum() > 0
    module = nn.Linear(3, 4)
    fl.train_only(module, {"weight": fl.rows([1])})
    with pytest.raises(fl.PartialTensorError, match=r"Call fl.merge\(model\)"):
        nn.utils.parametrizations.weight_norm(module)


def test_nothing_is_added_to_the_buffers_that_processes_would_broadcast(tied):
    fl.train_only(tied, {"embed.weight": fl.rows([3]), "head.bias": fl.rows([1])})
    assert list(tied.buffers()) == []
    assert len(list(tied.parameters())) == 4


def test_a_lost_state_raises_instead_of_handing_out_the_frozen_part():
    module = nn.Embedding(4, 2)
    fl.train_only(module, {"weight": fl.rows([1])})
    del module.__dict__["_frostline"]
    with pytest.raises(KeyError):
        _ = module.weight
