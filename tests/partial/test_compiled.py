"""torch.compile compiles partial modules without graph breaks, and does not recompile for the next batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import frostline as fl

V, D = 24, 8

# torch's compiler hides this warning of its own; as an error it would stop the compilation
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Gpt(nn.Module):
    """A small decoder whose table is also its head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(V, D), nn.Embedding(16, D)
        self.norm, self.norm2, self.last = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.head = nn.Linear(D, V)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1]))
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, 2, D // 2)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(self.last(x))


def ids(seed: int = 0) -> Tensor:
    return torch.randint(V, (2, 6), generator=torch.Generator().manual_seed(seed))


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(3, D, generator=torch.Generator().manual_seed(seed))


MODELS = {
    "embedding": (lambda: nn.Embedding(V, D), {"weight": fl.rows([3, 1])}, ids),
    "embedding of entries": (lambda: nn.Embedding(V, D), {"weight": fl.entries(torch.eye(V, D) > 0)}, ids),
    "bag": (lambda: nn.EmbeddingBag(V, D), {"weight": fl.rows([3, 1])}, ids),
    "linear": (lambda: nn.Linear(D, V), {"weight": fl.rows([3, 1]), "bias": fl.rows([5])}, inputs),
    "tied, with a partial bias": (Gpt, {"embed.weight": fl.rows([3, 1]), "head.bias": fl.rows([1, 3])}, ids),
    "every tensor": (Gpt, {"*": fl.rows([3, 1])}, ids),
}


@pytest.mark.parametrize("name", MODELS)
def test_there_are_no_graph_breaks_and_one_graph(name: str) -> None:
    build, selections, batch = MODELS[name]
    model = build()
    assert fl.train_only(model, selections).parameters()
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(batch())
    assert explained.graph_count == 1
    assert explained.break_reasons == []


@pytest.mark.parametrize("name", MODELS)
def test_steps_of_an_optimizer_and_other_batches_recompile_nothing(name: str) -> None:
    build, selections, batch = MODELS[name]
    torch.manual_seed(0)
    model = build()
    plan = fl.train_only(model, selections)
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    before = [parameter.detach().clone() for parameter in plan.parameters()]
    for seed in range(3):
        with torch._dynamo.config.patch(error_on_recompile=seed > 0):
            out = compiled(batch(seed))
        torch.testing.assert_close(out, model(batch(seed)), rtol=1e-5, atol=1e-5)
        optimizer.zero_grad()
        out.square().sum().backward()
        optimizer.step()
    assert all((old != new).any() for old, new in zip(before, plan.parameters(), strict=True))


def test_a_new_plan_is_seen_by_a_module_that_was_compiled_before() -> None:
    model = Gpt()
    fl.train_only(model, {"embed.weight": fl.rows([3, 1])})
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(ids()).sum().backward()
    plan = fl.train_only(model, {"embed.weight": fl.rows([5, 3, 2]), "out.weight": fl.rows([0])})
    with torch.no_grad():
        for parameter in plan.parameters():
            parameter.add_(1.0)
    expected = torch.autograd.grad(model(ids()).square().sum(), plan.parameters())
    gradients = torch.autograd.grad(compiled(ids()).square().sum(), plan.parameters())
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert theirs.abs().sum() > 0


def test_language_models_of_transformers_compile_whole() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    plan = fl.train_only(model, {"model.embed_tokens.weight": fl.rows([3, 1])})
    eager = torch.autograd.grad(model(ids(), labels=ids()).loss, plan.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    (ours,) = torch.autograd.grad(compiled(ids(), labels=ids()).loss, plan.parameters())
    torch.testing.assert_close(ours, eager[0], rtol=1e-4, atol=1e-5)
    assert eager[0].abs().sum() > 0


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_any_tensor_of_a_recurrent_module_may_learn_in_part_beside_compiled_layers(make: type[nn.RNNBase]) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.recurrent, self.head = nn.Embedding(V, D), make(D, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.recurrent(self.embed(ids))[0])

    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        model = Tagger()
        plan = fl.train_only(model, {f"recurrent.{name}": fl.rows([2, 0])})
        (eager,) = torch.autograd.grad(model(ids()).square().sum(), plan.parameters())
        torch._dynamo.reset()
        (ours,) = torch.autograd.grad(
            torch.compile(model, backend="aot_eager")(ids()).square().sum(), plan.parameters()
        )
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)
        assert eager.abs().sum() > 0


def test_entries_of_a_large_layer_agree_with_a_compiled_and_a_functional_run_within_rounding():
    """Eagerly each entry of the gradient is summed up by itself, elsewhere in a product of matrices."""
    found = {}
    for way in ("eager", "compiled", "functional"):
        torch.manual_seed(0)
        layer = nn.Linear(96, 128)
        before = layer.weight.detach().clone()
        plan = fl.train_only(layer, {"weight": fl.entries(torch.rand(128, 96) < 0.02)})
        optimizer = torch.optim.SGD(plan.parameters(), lr=0.1)
        x = torch.randn(64, 96)
        call = torch.compile(layer, backend="aot_eager") if way == "compiled" else layer
        for _ in range(3):
            optimizer.zero_grad()
            if way == "functional":
                parts = {name: part * 1 if part.requires_grad else part for name, part in layer.named_parameters()}
                out = torch.func.functional_call(layer, parts, x)
            else:
                out = call(x)
            out.square().mean().backward()
            optimizer.step()
        found[way] = layer.weight_learned.detach().clone()
        after = layer.weight.detach()
        mask = layer.weight.learned_indices.index
        moved = torch.zeros_like(before, dtype=torch.bool)
        moved[mask] = True
        assert torch.equal(after[~moved], before[~moved])
        assert (after[moved] != before[moved]).any()
    for way in ("compiled", "functional"):
        torch.testing.assert_close(found[way], found["eager"], rtol=0, atol=2e-6)
