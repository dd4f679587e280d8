"""Uses that were once silently wrong, or crashed where plain torch works."""

import copy
import pickle
import re
import threading
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

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


def moved_embedding(**kwargs):
    """A partial embedding whose learned rows have moved, and what its table should read."""
    torch.manual_seed(0)
    module = nn.Embedding(12, 6, **kwargs)
    expected = module.weight.detach().clone()
    fl.train_only(module, {"weight": fl.rows([7, 3, 0])})
    with torch.no_grad():
        module.weight_learned.add_(100)
    expected[[7, 3, 0]] += 100
    return module, expected


def test_inference_mode_reads_and_writes():
    module, expected = moved_embedding()
    convolution = nn.Conv2d(3, 4, 3)
    fl.train_only(convolution, {"weight": fl.rows([1])})
    with torch.inference_mode():
        assert torch.equal(module(IDS), expected[IDS])
        assert torch.equal(module.weight.clone(), expected)
        assert convolution(torch.randn(1, 3, 5, 5)).shape == (1, 4, 3, 3)
    with torch.no_grad():
        module.weight[3] = 5
    assert module.weight[3].tolist() == [5.0] * 6


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_checkpoint_that_a_load_hook_changes_reaches_the_learned_rows(dtype):
    module = nn.Embedding(5, 2).to(torch.bfloat16)

    def rename(module, state, prefix, *_):
        state[prefix + "weight"] = state.pop(prefix + "table")

    module.register_load_state_dict_pre_hook(rename)
    fl.train_only(module, {"weight": fl.rows([1], dtype=dtype)})
    new = torch.arange(10.0).view(5, 2)
    module.load_state_dict({"table": new})
    assert torch.equal(module.weight.detach().clone().float(), new)


def test_what_reads_raw_memory_gets_the_learned_values(tmp_path):
    module, expected = moved_embedding()
    safetensors.torch.save_file({"w": module.weight.detach()}, tmp_path / "w.safetensors")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "w.safetensors")["w"], expected)
    assert torch.equal(torch.utils.dlpack.from_dlpack(module.weight.detach()), expected)
    assert torch.equal(module.weight.detach().as_subclass(torch.Tensor), expected)


def test_a_table_over_read_only_memory_is_saved_and_merged_by_copy():
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "not writable", which torch says once in a process
        module = nn.Embedding.from_pretrained(torch.from_numpy(array))
    fl.train_only(module, {"weight": fl.rows([1])})
    with torch.no_grad():
        module.weight_learned.add_(1)
    expected = torch.tensor(array)
    expected[1] += 1
    assert torch.equal(module.state_dict()["weight"], expected)
    module.weight.detach()
    fl.merge(module)
    assert torch.equal(module.weight, expected)
    assert array[1].tolist() == [2.0, 3.0]


def read_only_table(tmp_path):
    """A plain embedding over a file that numpy maps for reading: a write into its memory would end the process."""
    np.arange(12, dtype=np.float32).tofile(tmp_path / "table.bin")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        array = np.memmap(tmp_path / "table.bin", dtype=np.float32, mode="r", shape=(6, 2))
        return nn.Embedding.from_pretrained(torch.from_numpy(array))


def test_values_are_written_over_a_read_only_map_and_the_file_stays(tmp_path):
    module, other = read_only_table(tmp_path), read_only_table(tmp_path)
    before = (tmp_path / "table.bin").read_bytes()
    fl.train_only(module, {"weight": fl.rows([1])})
    with torch.no_grad():
        module.weight[1] = 9
    fl.save_learned(module, tmp_path / "rows.safetensors")
    fl.load_learned(other, tmp_path / "rows.safetensors")
    assert torch.equal(other.weight, module.weight.detach().clone())
    assert other.weight[:3].tolist() == [[0.0, 1.0], [9.0, 9.0], [4.0, 5.0]]
    with torch.no_grad():
        module.weight[2] = 8
    assert module.weight[2].tolist() == [8.0, 8.0]
    assert (tmp_path / "table.bin").read_bytes() == before


def test_functional_call_with_the_plain_name_uses_the_whole_tensor_it_was_given():
    module, _ = moved_embedding()
    whole = torch.zeros(12, 6, requires_grad=True)
    out = functional_call(module, {"weight": whole}, (IDS,))
    assert out.abs().sum() == 0
    out.sum().backward()
    assert whole.grad[3].tolist() == [3.0] * 6


def test_functional_call_with_the_frozen_part_detached_and_the_learned_one_not_is_refused():
    module, _ = moved_embedding()
    learns = {name: value for name, value in module.named_parameters() if value.requires_grad}
    frozen = {name: value.detach() for name, value in module.named_parameters() if not value.requires_grad}
    with pytest.raises(fl.PartialTensorError, match=re.escape("may be the whole or the frozen part alone. Pass both")):
        functional_call(module, (learns, frozen), (IDS,))
    detached = {name: value.detach() for name, value in learns.items()}
    assert torch.equal(functional_call(module, (detached, frozen), (IDS,)), module(IDS))
    assert torch.equal(functional_call(module, dict(module.named_parameters()), (IDS,)), module(IDS))


class Product(torch.autograd.Function):
    @staticmethod
    def forward(context, x, weight):
        context.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(context, gradient):
        x, weight = context.saved_tensors
        return gradient @ weight, gradient.T @ x


def test_a_function_of_another_library_gets_the_current_values_and_gives_the_right_gradient():
    module, expected = moved_embedding()
    x = torch.randn(4, 6)
    out = Product.apply(x, module.weight)
    torch.testing.assert_close(out, x @ expected.T)
    out.sum().backward()
    torch.testing.assert_close(module.weight.grad, x.sum(0).expand(3, 6))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_keeps_the_gradient(reentrant):
    model = Tied()
    fl.train_only(model, {"embed.weight": fl.rows([3, 1])})
    model(IDS).sum().backward()
    expected = model.embed.weight_learned.grad.clone()
    model.embed.weight_learned.grad = None
    hidden = torch.tanh(model.embed(IDS))
    checkpoint(F.linear, hidden, model.head.weight, model.head.bias, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close(model.embed.weight_learned.grad, expected)
    model.embed.weight_learned.grad = None
    checkpoint(model, IDS, use_reentrant=False).sum().backward()
    torch.testing.assert_close(model.embed.weight_learned.grad, expected)


def test_a_padding_index_given_in_the_call_gets_no_gradient():
    weight = nn.Embedding(5, 2)
    fl.train_only(weight, {"weight": fl.rows([1, 2])})
    F.embedding(torch.tensor([1, 2, 2]), weight.weight, padding_idx=1).sum().backward()
    assert weight.weight.grad.tolist() == [[0.0, 0.0], [2.0, 2.0]]


def test_every_owner_of_a_tied_table_has_its_padding_row_respected():
    model = nn.ModuleList([nn.Embedding(5, 2, padding_idx=0), nn.Embedding(5, 2, padding_idx=4)])
    model[1].weight = model[0].weight
    for row in (0, 4):
        with pytest.raises(fl.RowError, match=f"row {row} is the padding row"):
            fl.train_only(model, {"0.weight": fl.rows([row])})
    assert fl.train_only(model, {"0.weight": fl.rows([2])}).learned == 2


def test_an_operation_that_writes_two_views_writes_both():
    module, expected = moved_embedding()
    with torch.no_grad():
        torch._foreach_mul_([module.weight[0], module.weight[1], module.weight[3]], 2.0)
        torch.aminmax(torch.arange(12.0).view(2, 6), dim=0, out=(module.weight[7], module.weight[8]))
    expected[[0, 1, 3]] *= 2
    expected[7], expected[8] = torch.arange(6.0), torch.arange(6.0, 12.0)
    assert torch.equal(module.weight.detach().clone(), expected)


def test_complex_weights_are_right_through_conjugates_and_real_views():
    torch.manual_seed(0)
    module = nn.Linear(4, 3, dtype=torch.complex64)
    whole = module.weight.detach().clone().requires_grad_()
    fl.train_only(module, {"weight": fl.rows([2, 0])})
    x = torch.randn(5, 3, dtype=torch.complex64)

    def use(w):
        return (x @ w.conj()).abs().sum() + w.imag.pow(2).sum() + (w.mH @ w).real.sum() + w.real.sum()

    use(whole).backward()
    loss = use(module.weight)
    loss.backward()
    torch.testing.assert_close(loss, use(whole))
    torch.testing.assert_close(module.weight.grad, whole.grad[[2, 0]])
    with torch.no_grad():
        module.weight.imag.zero_()
        whole.imag.zero_()
    assert torch.equal(module.weight.detach().clone(), whole.detach())
    with pytest.raises(fl.SelectionError, match=r"weight: dtype: torch.float32 cannot hold torch.complex64"):
        fl.train_only(module, {"weight": fl.rows([1], dtype=torch.float32)})


def test_a_class_that_watches_its_subclasses_is_left_alone():
    seen = []

    class Registered(nn.Embedding):
        def __init_subclass__(cls, /, tag, **kwargs):
            super().__init_subclass__(**kwargs)
            seen.append(tag)

    module = Registered(5, 2)
    fl.train_only(module, {"weight": fl.rows([1])})
    assert seen == []
    assert isinstance(module.weight, fl.PartialTensor)
    another = type(module)(3, 2)
    assert type(another) is Registered
    assert another(torch.tensor([1])).shape == (1, 2)


def test_a_marker_in_a_row_that_learns_does_not_reach_other_gradients():
    module = nn.Linear(3, 5, bias=False)
    with torch.no_grad():
        module.weight[3] = torch.nan
    fl.train_only(module, {"weight": fl.rows([3])})
    with torch.no_grad():
        module.weight_learned.zero_()
    x = torch.ones(2, 3, requires_grad=True)
    module(x).sum().backward()
    torch.testing.assert_close(x.grad, module.weight.detach().clone().sum(0).expand(2, 3))


@pytest.mark.parametrize("keep", ["attribute", "buffer", "nested"])
def test_another_way_to_the_same_memory_is_refused(keep):
    module = nn.Linear(3, 3)
    if keep == "attribute":
        module.table = module.weight.detach()
    elif keep == "buffer":
        module.register_buffer("table", module.weight.data)
    else:
        module.tables = {"a": [module.weight[1:].detach()]}
    with pytest.raises(fl.PartialTensorError, match=r"weight shares its memory with attribute .* of the model"):
        fl.train_only(module, {"weight": fl.rows([1])})
    assert type(module) is nn.Linear


def test_plans_on_one_end_of_a_tie_are_refused_once_both_ends_are_partial():
    model = Tied()
    fl.train_only(model, {"embed.weight": fl.rows([1])})
    for change in (lambda: fl.train_only(model.embed, {"weight": fl.rows([2])}), lambda: fl.merge(model.embed)):
        with pytest.raises(fl.PartialTensorError, match="a Linear outside this model is tied to it"):
            change()
    assert model.embed.weight_learned is model.head.weight_learned
    fl.merge(copy.deepcopy(model).embed)  # a copy's ends were never counted, and are its own affair
    fl.merge(model)
    assert model.embed.weight is model.head.weight


def test_released_statistics_go_back_to_the_mode_that_was_asked_for():
    model = nn.ModuleList([nn.BatchNorm1d(3), nn.Linear(3, 3)])
    model[0].eval()
    fl.train_only(model, {"1.*": fl.everything}, freeze_running_stats=True)
    fl.merge(model)
    assert not model[0].training
    fl.train_only(model, {"1.*": fl.everything}, freeze_running_stats=True)
    model.train()
    fl.train_only(model, {"1.*": fl.everything})
    assert model[0].training


def test_a_one_dimensional_weight_goes_through_linear():
    model = nn.Module()
    model.w = nn.Parameter(torch.arange(6.0))
    fl.train_only(model, {"w": fl.rows([5, 0, 1, 2, 3, 4])})
    x = torch.eye(6)
    assert torch.equal(F.linear(x, model.w), torch.arange(6.0))


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_a_sparse_lookup_of_entries_has_a_dense_gradient(make):
    module = make(5, 2, sparse=True)
    fl.train_only(module, {"weight": fl.entries(torch.arange(10).view(5, 2) == 3)})
    module(torch.tensor([[1, 1]])).sum().backward()
    assert module.weight.grad.tolist() == [2.0 if make is nn.Embedding else 1.0]


def test_a_learned_file_is_compared_with_the_target_as_it_is_now(tmp_path):
    module, _ = moved_embedding()
    base = nn.Embedding(12, 6)
    base.load_state_dict(module.state_dict())
    fl.save_learned(module, tmp_path / "rows.safetensors")
    fl.train_only(base, {"weight": fl.rows([9])})
    with torch.no_grad():
        base.weight_learned.add_(1)
    with pytest.warns(UserWarning, match="another base"):
        fl.load_learned(base, tmp_path / "rows.safetensors", strict=False)


def test_several_threads_may_save_to_one_path(tmp_path):
    module, _ = moved_embedding()
    errors = []

    def save():
        try:
            for _ in range(20):
                fl.save_learned(module, tmp_path / "rows.safetensors")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["rows.safetensors"]


@pytest.mark.parametrize("use", [fl.save_learned, fl.load_learned])
def test_a_folder_in_place_of_a_file_is_refused(tmp_path, use):
    module, _ = moved_embedding()
    with pytest.raises(fl.LearnedFileError, match=str(tmp_path)):
        use(module, tmp_path)
    with pytest.raises((fl.LearnedFileError, FileNotFoundError), match="missing"):
        use(module, tmp_path / "missing" / "rows.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_selections_that_are_not_a_mapping_are_refused():
    with pytest.raises(TypeError, match="selections: expected a dict of names, got 'weight'"):
        fl.train_only(nn.Linear(2, 2), "weight")


def test_a_list_of_rows_is_read_when_it_is_given():
    ids = [1, 2]
    selection = fl.rows(ids)
    ids.append(3)
    assert fl.train_only(nn.Embedding(5, 2), {"weight": selection}).learned == 4


def test_sharing_memory_shares_both_parts():
    module, expected = moved_embedding()
    module.share_memory()
    assert module.weight.frozen.is_shared()
    assert module.weight.learned.is_shared()
    assert torch.equal(module.weight.detach().clone(), expected)
    assert torch.equal(module.state_dict()["weight"], expected)


def test_parts_that_were_made_under_inference_mode_are_used():
    module = nn.Conv1d(2, 3, 1)
    fl.train_only(module, {"weight": fl.rows([1])})
    x = torch.ones(1, 2, 4)
    with torch.inference_mode():
        copies = {name: parameter.clone() for name, parameter in module.named_parameters()}
        copies["weight_learned"] += 1
        out = torch.func.functional_call(module, copies, (x,))
    assert torch.equal(out[:, [0, 2]], module(x)[:, [0, 2]])
    torch.testing.assert_close(out[:, 1], module(x)[:, 1] + 2)


def test_what_is_computed_into_another_tensor_is_no_write(tmp_path):
    torch.ones(6, 2).numpy().tofile(tmp_path / "table")
    mapped = fl.mapped_embedding(tmp_path / "table", shape=(6, 2))
    linear = nn.Linear(2, 6)
    fl.train_only(nn.ModuleList([mapped, linear]), {"0.weight": fl.rows([1]), "1.weight": fl.rows([1])})
    for weight in (mapped.weight, linear.weight):
        into = torch.empty(6, 2)
        with torch.no_grad():
            torch.mul(weight, 2, out=into)
        assert torch.equal(into, 2 * weight.detach())


def test_numbers_of_a_weight_are_plain_and_its_rows_are_views():
    linear = nn.Linear(4, 3)
    fl.train_only(linear, {"weight": fl.rows([1])})
    assert linear.weight.tolist() == linear.state_dict()["weight"].tolist()
    memory = linear.weight.untyped_storage().data_ptr()
    assert all(row.untyped_storage().data_ptr() == memory for row in linear.weight.unbind())
    with torch.no_grad():
        linear.weight.unbind()[1].fill_(7)
    assert linear.weight_learned.tolist() == [[7] * 4]


@pytest.mark.parametrize("selection", [fl.rows([1]), fl.entries(torch.eye(5, 3) > 0)], ids=["rows", "entries"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 5), lambda: nn.Embedding(5, 3)], ids=["linear", "embedding"])
@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_a_traced_module_computes_with_what_is_learned_later(make, selection):
    module = make()
    x = torch.tensor([1, 2]) if isinstance(module, nn.Embedding) else torch.ones(2, 3)
    fl.train_only(module, {"weight": selection})
    traced = torch.jit.trace(module, x)
    before = traced(x)
    assert torch.equal(before, module(x))
    with torch.no_grad():
        module.weight_learned.add_(1)
    torch.testing.assert_close(traced(x), module(x))
    assert not torch.equal(traced(x), before)


def test_read_only_memory_that_is_first_written_under_inference_mode_learns():
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    array.setflags(write=False)
    module = nn.Linear(3, 4, bias=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.weight = nn.Parameter(torch.from_numpy(array))
    fl.train_only(module, {"weight": fl.rows([1])})
    with torch.inference_mode():
        module.weight[1] = 5.0
    module(torch.ones(3, requires_grad=True)).sum().backward()
    torch.optim.SGD([module.weight_learned], lr=1.0).step()
    assert module.weight[1].tolist() == [4.0, 4.0, 4.0]
    assert array[1].tolist() == [3.0, 4.0, 5.0]


def test_a_second_derivative_after_an_evaluation_in_inference_mode():
    mask = torch.eye(5, 3) > 0
    module = nn.Linear(3, 5)
    fl.train_only(module, {"weight": fl.entries(mask)})
    module = pickle.loads(pickle.dumps(module))  # its indices are new: their flat form is made under inference_mode
    with torch.inference_mode():
        module(torch.ones(3))
    (slope,) = torch.autograd.grad(module.weight.pow(3).sum(), module.weight_learned, create_graph=True)
    slope.sum().backward()
    torch.testing.assert_close(module.weight.grad, 6 * module.weight_learned.detach())


def test_after_the_refusal_of_a_gradient_of_the_whole_it_trains_on():
    module = nn.Linear(3, 5)
    plan = fl.train_only(module, {"weight": fl.rows([1])})
    optimizer, before = torch.optim.SGD(plan.parameters(), lr=0.1), module.state_dict()["weight"].clone()
    module(torch.ones(3)).sum().backward(inputs=[module.weight])
    with pytest.raises(fl.PartialTensorError, match="not a leaf"):
        optimizer.step()
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    assert (module.state_dict()["weight"] != before).any(1).tolist() == [False, True, False, False, False]
