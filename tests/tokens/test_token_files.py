"""A learned file of `add_tokens` finds its rows by the text of their tokens, whatever their ids are."""

import copy
import pickle
import re
import warnings

import pytest
import torch
from torch import nn

import frostline as fl

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


def make_tokenizer(*more):
    known = {word: i for i, word in enumerate(["?", "the", "cat", "sat", *more])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")


def make_model(rows=4, tied=True):
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, **sizes, **special)
    return transformers.LlamaForCausalLM(config)


def tuned(path, tokens, tied=True, **options):
    """Save the rows of tokens: the row of the k-th is full of k + 1, in an untied head of -(k + 1)."""
    model, tokenizer = make_model(tied=tied), make_tokenizer()
    fl.add_tokens(model, tokenizer, tokens, **options)
    with torch.no_grad():
        for k, token in enumerate(tokens):
            row = tokenizer.convert_tokens_to_ids(token)
            model.lm_head.weight[row] = -float(k + 1)
            model.model.embed_tokens.weight[row] = float(k + 1)
    fl.save_learned(model, path)
    return model


def row_of(model, tokenizer, token):
    return model.get_input_embeddings().weight.detach()[tokenizer.convert_tokens_to_ids(token)].unique().tolist()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.safetensors"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("order", [["<tool>", "<think>"], ["<think>", "<tool>"]])
@pytest.mark.filterwarnings("error::UserWarning:frostline")
def test_tokens_listed_in_any_order_get_their_own_rows(path, tied, order):
    tuned(path, ["<tool>", "<think>"], tied)
    model, tokenizer = make_model(tied=tied), make_tokenizer()
    fl.add_tokens(model, tokenizer, order)
    before = model.get_input_embeddings().weight.detach().clone()
    loaded = fl.load_learned(model, path)
    assert row_of(model, tokenizer, "<tool>") == [1.0]
    assert row_of(model, tokenizer, "<think>") == [2.0]
    assert torch.equal(model.get_input_embeddings().weight[:4], before[:4])
    assert loaded.tokens == {text: tokenizer.convert_tokens_to_ids(text) for text in ("<tool>", "<think>")}
    if not tied:
        assert model.lm_head.weight.detach()[tokenizer.convert_tokens_to_ids("<think>")].unique().tolist() == [-2.0]


def test_tokens_with_other_ids_get_their_own_rows_and_the_base_is_said_to_differ(path):
    tuned(path, ["<tool>", "<think>"])
    model, tokenizer = make_model(rows=6), make_tokenizer("dog", "ran")  # the ids of new tokens start at 6, not 4
    fl.add_tokens(model, tokenizer, ["<think>", "<tool>"])
    with pytest.warns(UserWarning, match=r"embed_tokens.weight was learned on another base"):
        fl.load_learned(model, path)
    assert row_of(model, tokenizer, "<tool>") == [1.0]
    assert row_of(model, tokenizer, "<think>") == [2.0]
    assert tokenizer.convert_tokens_to_ids("<tool>") == 7


def test_tokens_that_the_model_does_not_have_are_refused(path):
    tuned(path, ["<tool>", "<think>"])
    model, tokenizer = make_model(), make_tokenizer()
    fl.add_tokens(model, tokenizer, ["<cat>", "<tool>"])
    before = model.get_input_embeddings().weight.detach().clone()
    says = "the file holds tokens that the model does not have: '<think>'. List them in fl.add_tokens, or pass strict"
    with pytest.raises(fl.LearnedFileError, match=re.escape(says)):
        fl.load_learned(model, path)
    assert torch.equal(model.get_input_embeddings().weight, before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the base holds another token
        loaded = fl.load_learned(model, path, strict=False)
    assert row_of(model, tokenizer, "<tool>") == [1.0]
    assert loaded.tokens == {"<tool>": 5}
    assert torch.equal(model.get_input_embeddings().weight[:5], before[:5])


def test_none_of_the_tokens_is_an_error_even_if_differences_are_allowed(path):
    tuned(path, ["<tool>"])
    model, tokenizer = make_model(), make_tokenizer()
    fl.add_tokens(model, tokenizer, ["<cat>"])
    for strict in (True, False):
        with pytest.raises(fl.LearnedFileError, match=r"'<tool>'"):
            fl.load_learned(model, path, strict=strict)


def test_a_token_that_learns_and_is_not_in_the_file_is_an_error(path):
    tuned(path, ["<tool>"])
    model, tokenizer = make_model(), make_tokenizer()
    fl.add_tokens(model, tokenizer, ["<tool>", "<cat>"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(fl.LearnedFileError, match=re.escape("rows 5 learn, and are not in the file")):
            fl.load_learned(model, path)
        fl.load_learned(model, path, strict=False)
    assert row_of(model, tokenizer, "<tool>") == [1.0]


@pytest.mark.parametrize("strict", [True, False])
def test_a_model_without_tokens_is_an_error_that_says_what_to_call(path, strict):
    tuned(path, ["<tool>"])
    model = make_model(rows=5)
    says = "of the model no tokens are known. Call fl.add_tokens(model, tokenizer, ['<tool>']) first."
    with pytest.raises(fl.LearnedFileError, match=re.escape(says)):
        fl.load_learned(model, path, strict)
    fl.train_only(model, {"model.embed_tokens.weight": fl.rows([4])})
    with pytest.raises(fl.LearnedFileError, match=re.escape(says)):
        fl.load_learned(model, path, strict)


def test_a_file_that_says_nothing_of_tokens_is_not_loaded_into_their_rows_unasked(path):
    model = make_model(rows=5)
    fl.train_only(model, {"model.embed_tokens.weight": fl.rows([4])})
    with torch.no_grad():
        model.model.embed_tokens.weight[4] = 7
    fl.save_learned(model, path)
    other, tokenizer = make_model(rows=5), make_tokenizer()
    fl.add_tokens(other, tokenizer, ["<tool>"])
    says = "the file does not say which tokens its rows are, and in the model they are those of '<tool>'."
    with pytest.raises(fl.LearnedFileError, match=re.escape(says)):
        fl.load_learned(other, path)
    fl.load_learned(other, path, strict=False)
    assert row_of(other, tokenizer, "<tool>") == [7.0]


def test_a_tied_file_goes_into_both_tables_of_an_untied_model(path):
    tuned(path, ["<tool>"], tied=True)
    model, tokenizer = make_model(tied=False), make_tokenizer()
    fl.add_tokens(model, tokenizer, ["<tool>"])
    with pytest.warns(UserWarning, match=r"lm_head.weight was learned on another base"):  # the head is another one
        fl.load_learned(model, path)
    assert row_of(model, tokenizer, "<tool>") == [1.0]
    assert model.lm_head.weight.detach()[4].unique().tolist() == [1.0]


def test_an_untied_file_is_refused_by_a_tied_model(path):
    tuned(path, ["<tool>"], tied=False)
    model, tokenizer = make_model(tied=True), make_tokenizer()
    fl.add_tokens(model, tokenizer, ["<tool>"])
    with pytest.raises(fl.LearnedFileError, match=r"are one tensor in the model, and differ in the file"):
        fl.load_learned(model, path)
    assert row_of(model, tokenizer, "<tool>") != [1.0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_knows_its_tokens(path, copied):
    tuned(path, ["<tool>", "<think>"])
    model, tokenizer = make_model(), make_tokenizer()
    fl.add_tokens(model, tokenizer, ["<think>", "<tool>"])
    model = copied(model)
    fl.load_learned(model, path)
    assert row_of(model, tokenizer, "<tool>") == [1.0]


def test_tokens_stay_known_under_a_later_plan_of_the_same_table(path):
    model, tokenizer = make_model(), make_tokenizer()
    fl.add_tokens(model, tokenizer, ["<tool>", "<think>"])
    fl.train_only(model, {"model.embed_tokens.weight": fl.rows([5, 1])})
    with torch.no_grad():
        model.model.embed_tokens.weight[[5, 1]] = torch.tensor([[5.0], [1.0]]).expand(2, 4)
    fl.save_learned(model, path)
    other = make_model()
    fl.add_tokens(other, make_tokenizer(), ["<think>", "<tool>"])
    fl.train_only(other, {"model.embed_tokens.weight": fl.rows([1, 4])})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the row of <tool> is another one's start
        loaded = fl.load_learned(other, path)
    assert loaded.tokens == {"<think>": 4}
    assert other.model.embed_tokens.weight.detach()[:, 0].tolist()[1] == 1.0
    assert other.model.embed_tokens.weight.detach()[4].tolist() == [5.0] * 4


def test_other_tensors_of_the_plan_are_loaded_beside_the_tokens(path):
    tuned(path, ["<tool>"], also={"model.norm.weight": fl.everything})
    model, tokenizer = make_model(), make_tokenizer()
    fl.add_tokens(model, tokenizer, ["<tool>"], also={"model.norm.weight": fl.everything})
    assert isinstance(model.model.norm.weight, nn.Parameter)
    assert list(fl.load_learned(model, path).tensors.values()) == ["1 row", "everything"]
