"""Which tables get rows: all over the same ids together, or none; and which tokens get one."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl

transformers = pytest.importorskip("transformers")

from .cases import NEW, batch_of, make_llama, make_tokenizer, table, train  # noqa: E402


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


def bert(rows: int, **options: Any) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.BertConfig(vocab_size=rows, max_position_embeddings=40, **sizes, **options)


def encoder_decoder(rows: int, tied: bool = True, decoder_rows: int | None = None) -> Any:
    """Two embeddings over the same ids; the head is the decoder's, tied to its embedding or not."""
    torch.manual_seed(0)
    options = {"is_decoder": True, "add_cross_attention": True, "tie_word_embeddings": tied}
    decoder = transformers.BertLMHeadModel(bert(decoder_rows or rows, **options))
    model = transformers.EncoderDecoderModel(encoder=transformers.BertModel(bert(rows)), decoder=decoder)
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    return model.eval()


@pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")
@pytest.mark.parametrize("spare", [0, 6], ids=["grows", "spare rows"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_embeddings_of_encoder_and_decoder_learn_together(tokenizer: Any, tied: bool, spare: int) -> None:
    v = len(tokenizer)
    model = encoder_decoder(v + spare, tied)
    encoder, decoder = model.encoder.embeddings.word_embeddings, model.decoder.bert.embeddings.word_embeddings
    head = model.decoder.cls.predictions.decoder
    assert (head.weight is decoder.weight) == tied
    plan = fl.add_tokens(model, tokenizer, NEW)
    size = max(v + spare, v + 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert encoder.num_embeddings == decoder.num_embeddings == head.out_features == len(head.bias) == size
    assert model.config.encoder.vocab_size == model.config.decoder.vocab_size == size
    batch = batch_of(tokenizer)
    ids = batch["input_ids"]
    train(model, plan.parameters(), {"input_ids": ids, "labels": ids}, 2)
    after = model.state_dict()
    # (Untied, BERT has a bias besides its head's that nothing uses.)
    grown = {name for line in plan.lines if line.learned for name in (line.name, *line.tied)}
    assert len(grown) >= 4 - tied
    for name in before:
        rest = [i for i in range(size) if i not in (v, v + 1)] if name in grown else slice(None)
        assert torch.equal(after[name][rest] if name in grown else after[name], before[name][rest]), name
    for name in grown:
        assert not torch.equal(after[name][v : v + 2], before[name][v : v + 2]), name


def test_a_decoder_over_other_ids_is_refused_and_nothing_changes(tokenizer: Any) -> None:
    v = len(tokenizer)
    model = encoder_decoder(v, decoder_rows=v + 7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(fl.PartialTensorError, match=rf"has {v + 7} rows and .* {v}, so one vocab_size cannot fit both"):
        fl.add_tokens(model, tokenizer, NEW)
    assert len(tokenizer) == v
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("spare", [0, 5])
def test_an_embedding_that_no_part_calls_its_own_is_refused(tokenizer: Any, spare: int) -> None:
    v = len(tokenizer)
    model = make_llama(v + spare)
    model.model.per_layer = nn.Embedding(v + spare, 4)
    says = "has a row for each token too, " + ("and none of them would learn" if spare else "but would not grow")
    with pytest.raises(fl.PartialTensorError, match=rf"model: model.per_layer {says}.*`also`"):
        fl.add_tokens(model, tokenizer, NEW)
    assert len(tokenizer) == v
    assert len(model.model.per_layer.weight) == v + spare


@pytest.mark.parametrize("choice", [fl.nothing, fl.rows([286, 287])])
def test_with_spare_rows_also_says_what_such_an_embedding_does(tokenizer: Any, choice: Any) -> None:
    v = len(tokenizer)
    assert v == 286
    model = make_llama(v + 5)
    model.model.per_layer = nn.Embedding(v + 5, 4)
    plan = fl.add_tokens(model, tokenizer, NEW, also={"*per_layer.weight": choice})
    learns = {line.name: line.count for line in plan.lines if line.learned}
    assert learns.get("model.per_layer.weight") == (None if choice is fl.nothing else 2)
    assert learns["model.embed_tokens.weight"] == 2


@pytest.mark.parametrize("init", ["subwords", "mean", "zeros", {"<tool>": "cat"}, torch.ones(1, 64)], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_tokens_beyond_the_table_get_a_start_and_are_named_in_the_plan(tokenizer: Any, tied: bool, init: Any) -> None:
    v = len(tokenizer)
    model = make_llama(v, tied)
    tokenizer.add_tokens(["<old>", "<older>"])  # and nobody resized the model
    pieces = [tokenizer.backend_tokenizer.model.tokenize(text) for text in ("<old>", "<older>")]
    before = table(model)
    plan = fl.add_tokens(model, tokenizer, ["<tool>"], init=init)
    assert tokenizer.convert_tokens_to_ids(["<old>", "<older>", "<tool>"]) == [v, v + 1, v + 2]
    expected = torch.stack([before[[piece.id for piece in each]].mean(0) for each in pieces])
    if isinstance(init, str) and init != "subwords":
        expected = before.mean(0).expand(2, -1) * (init == "mean")
    started = table(model)
    assert torch.equal(started[v : v + 2], expected)
    lines = {line.name: line.note for line in plan.lines if line.learned}
    assert set(lines.values()) == {"'<old>', '<older>' had no row; frozen now"}
    assert len(lines) == 1 + (not tied)
    assert f"1 of {v + 3} rows ('<old>', '<older>' had no row; frozen now)" in str(plan)
    train(model, plan.parameters(), batch_of(tokenizer))
    assert (table(model) != started).any(dim=1).nonzero().flatten().tolist() == [v + 2]


def test_a_plan_says_nothing_of_tokens_that_all_have_rows(tokenizer: Any) -> None:
    plan = fl.add_tokens(make_llama(len(tokenizer)), tokenizer, NEW)
    assert {line.note for line in plan.lines} == {""}


@pytest.mark.parametrize(
    "make_optimizer",
    [torch.optim.AdamW, torch.optim.SGD, fl.optim.RowAdamW, fl.optim.RowAdagrad],
    ids=lambda make: make.__name__,
)
def test_an_optimizer_made_before_the_table_grew_is_refused_at_its_next_step(
    tokenizer: Any, make_optimizer: Any
) -> None:
    model = make_llama(len(tokenizer))
    optimizer = make_optimizer(model.parameters(), lr=0.01)
    batch = dict(tokenizer(["the cat sat"], return_tensors="pt", return_token_type_ids=False))
    batch |= {"labels": batch["input_ids"]}
    model(**batch).loss.backward()
    optimizer.step()  # state of the size of the old table
    plan = fl.add_tokens(model, tokenizer, NEW)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.zero_grad()
    model(**batch_of(tokenizer)).loss.backward()
    with pytest.raises(fl.StaleOptimizerError):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    train(model, plan.parameters(), batch_of(tokenizer), 1)
    assert not torch.equal(table(model), before["model.embed_tokens.weight"])


@pytest.mark.parametrize("make_optimizer", [torch.optim.AdamW, fl.optim.RowAdamW], ids=lambda make: make.__name__)
def test_after_a_refusal_a_live_optimizer_goes_on_as_if_nothing_had_been_asked(
    tokenizer: Any, make_optimizer: Any
) -> None:
    results = []
    for asks in (False, True):
        model, known = make_llama(len(tokenizer)), copy.deepcopy(tokenizer)
        optimizer = make_optimizer(model.parameters(), lr=0.01)
        batch = dict(known(["the cat sat"], return_tensors="pt", return_token_type_ids=False))
        batch |= {"labels": batch["input_ids"]}
        for step in range(4):
            if asks and step == 2:
                model.model.embed_tokens.max_norm = 1.0
                with pytest.raises(fl.SelectionError, match=r"max_norm=1\.0 rewrites frozen rows in the forward"):
                    fl.add_tokens(model, known, NEW)
                model.model.embed_tokens.max_norm = None
                assert len(known) == len(tokenizer) == model.config.vocab_size == len(table(model))
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        results.append(table(model))
    assert torch.equal(*results)
    assert not torch.equal(results[0], table(make_llama(len(tokenizer))))


class Stands(torch.Tensor):
    """A tensor that owns no memory and calls itself float, as quantized ones of torchao and quanto do."""

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values)
        plain = torch.utils._pytree.tree_map(lambda x: x.values if isinstance(x, cls) else x, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


def with_wrappers(model: Any, *names: str) -> None:
    for name in names:
        module = model.get_submodule(name)
        module.weight = nn.Parameter(Stands(module.weight.detach()), requires_grad=False)


def test_weights_without_memory_of_their_own_do_not_share_it(tokenizer: Any) -> None:
    model = make_llama(len(tokenizer))
    layer = "model.layers.0.self_attn."
    with_wrappers(model, layer + "q_proj", layer + "k_proj")
    assert model.get_submodule(layer + "q_proj").weight.data_ptr() == 0
    plan = fl.add_tokens(model, tokenizer, NEW)
    before = table(model)
    train(model, plan.parameters(), batch_of(tokenizer))
    assert (table(model) != before).any(dim=1).nonzero().flatten().tolist() == [286, 287]
    fl.train_only(model, {"*v_proj.weight": fl.rows([0])})
    note = {line.name: line.note for line in plan.lines}[layer + "q_proj.weight"]
    assert note == "quantized (Stands): cannot learn"


@pytest.mark.parametrize("choice", [fl.everything, fl.rows([0])])
def test_a_quantized_weight_named_exactly_is_refused_and_matched_by_a_pattern_stays_frozen(choice: Any) -> None:
    model = make_llama(8)
    name = "model.layers.0.self_attn.q_proj"
    with_wrappers(model, name)
    with pytest.raises(fl.SelectionError, match=re.escape(f"{name}.weight: quantized (Stands): cannot learn.")):
        fl.train_only(model, {f"{name}.weight": choice})
    plan = fl.train_only(model, {"*_proj.weight": choice})
    learns = {line.name: line.learns for line in plan.lines}
    assert learns[f"{name}.weight"] == "nothing"
    assert learns[name.replace("q_proj", "k_proj") + ".weight"] != "nothing"


def test_a_plan_counts_the_numbers_of_a_packed_weight_and_not_its_bytes() -> None:
    class Packed(nn.Parameter):
        """Two values in a byte, as bitsandbytes keeps them."""

        quant_state: Any

    class Packing:
        shape, quant_type = torch.Size([6, 4]), "nf4"

    model = nn.ModuleDict({"base": nn.Linear(4, 6, bias=False), "head": nn.Linear(4, 2, bias=False)})
    packed = Packed(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = Packing()
    model["base"].weight = packed
    plan = fl.train_only(model, {"head.weight": fl.everything})
    line = plan.lines[0]
    assert (line.shape, line.total, line.note) == ((6, 4), 24, "quantized (nf4): cannot learn")
    assert (plan.total, plan.learned) == (32, 8)
    assert "25 % learns" in str(plan)


def test_a_plan_says_that_a_lora_merged_into_a_quantized_weight_is_rounded() -> None:
    adapted = nn.ModuleDict({"base_layer": nn.Linear(4, 6, bias=False), "lora_A": nn.Linear(4, 2, bias=False)})
    adapted["base_layer"].weight = nn.Parameter(torch.zeros(6, 4, dtype=torch.int8), requires_grad=False)
    model = nn.ModuleDict({"q_proj": adapted, "other": nn.Linear(2, 2, bias=False)})
    notes = {line.name: line.note for line in fl.train_only(model, {"*lora_A.weight": fl.everything}).lines}
    assert notes.pop("q_proj.base_layer.weight") == "torch.int8 cannot learn; a LoRA that is merged into it is rounded"
    assert notes == {"q_proj.lora_A.weight": "", "other.weight": ""}
