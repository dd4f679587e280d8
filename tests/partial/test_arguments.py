"""What beginners pass to train_only: each mistake gets one line that says what to type, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.ones(10, 4))
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 5)


MASK = torch.arange(10) % 3 == 0

MISTAKES: dict[str, tuple[Callable[[Model], object], type[Exception], str]] = {
    "a list of parameters": (
        lambda m: fl.train_only(m, [m.w1]),
        TypeError,
        "selections: expected a dict of names, got a list of Parameter. Write {'w1': fl.everything}.",
    ),
    "a list of modules": (lambda m: fl.train_only(m, [m.head]), TypeError, "Write {'head.*': fl.everything}."),
    "a list of names": (
        lambda m: fl.train_only(m, ["w1", "head.bias"]),
        TypeError,
        "got ['w1', 'head.bias']. Write {'w1': fl.everything, 'head.bias': fl.everything}.",
    ),
    "a name": (lambda m: fl.train_only(m, "w1"), TypeError, "got 'w1'. Write {'w1': fl.everything}."),
    "a selection": (
        lambda m: fl.train_only(m, fl.rows([1])),
        TypeError,
        "got rows([1]). Write {'name or pattern': fl.rows(ids), ...}; model.named_parameters() has the names.",
    ),
    "a parameter as key": (
        lambda m: fl.train_only(m, {m.w1: fl.rows([1])}),
        TypeError,
        "selections: the keys are names, but one is a Parameter of shape (10, 4). Write {'w1': fl.everything}.",
    ),
    "a module as key": (
        lambda m: fl.train_only(m, {m.embed: fl.rows([1])}),
        TypeError,
        "but one is the module Embedding. Write {'embed.*': fl.everything}.",
    ),
    "a parameter of another model": (
        lambda m: fl.train_only(m, {Model().w1: fl.everything}),
        TypeError,
        "Write {'name or pattern': fl.rows(ids), ...}",
    ),
    "a number as key": (lambda m: fl.train_only(m, {0: fl.everything}), TypeError, "the keys are names, but one is 0."),
    "everything()": (
        lambda m: fl.train_only(m, {"w1": fl.everything()}),
        TypeError,
        "fl.everything takes no parentheses. Write fl.everything.",
    ),
    "nothing()": (lambda m: fl.nothing(), TypeError, "Write fl.nothing."),
    "True": (
        lambda m: fl.train_only(m, {"w1": True}),
        TypeError,
        "w1: expected a selection, got True. Write fl.everything.",
    ),
    "None": (lambda m: fl.train_only(m, {"w1": None}), TypeError, "Write fl.nothing."),
    "a word": (lambda m: fl.train_only(m, {"w1": "everything"}), TypeError, "Write fl.everything."),
    "ids": (lambda m: fl.train_only(m, {"w1": [1, 2]}), TypeError, "got [1, 2]. Write fl.rows([1, 2])."),
    "a tensor of ids": (lambda m: fl.train_only(m, {"w1": torch.tensor([1])}), TypeError, "Write fl.rows(ids)."),
    "a mask": (
        lambda m: fl.train_only(m, {"w1": torch.ones(10, 4) > 0}),
        TypeError,
        "got a Tensor of shape (10, 4). Write fl.entries(mask)",
    ),
    "an array mask": (lambda m: fl.train_only(m, {"w1": np.ones((10, 4)) > 0}), TypeError, "Write fl.entries(mask)"),
    "rows without ids": (
        lambda m: fl.train_only(m, {"w1": fl.rows}),
        TypeError,
        "got the function rows. Pass fl.everything, fl.nothing, fl.rows(ids) or fl.entries(mask).",
    ),
    "swapped arguments": (
        lambda m: fl.train_only({"w1": fl.everything}, m),
        TypeError,
        "model: the model comes first, then what learns. Write fl.train_only(model, {'name': fl.rows(ids)}).",
    ),
    "a parameter as model": (
        lambda m: fl.train_only(m.w1, {"*": fl.everything}),
        TypeError,
        "model: expected an nn.Module, got Parameter. Pass the module that has this tensor, and choose the tensor by",
    ),
    "an optimizer as model": (
        lambda m: fl.train_only(torch.optim.SGD(m.parameters()), {"*": fl.everything}),
        TypeError,
        "model: expected an nn.Module, got SGD. Pass the model that it steps.",
    ),
    "a path as model": (
        lambda m: fl.save_learned("rows.safetensors", m),
        TypeError,
        "model: expected an nn.Module, got str. The model comes first",
    ),
    "merge of nothing": (lambda m: fl.merge(None), TypeError, "model: expected an nn.Module, got NoneType."),
    "a digest of a number": (
        lambda m: fl.digest(5),
        TypeError,
        "model: expected an nn.Module or the path of a checkpoint, got int.",
    ),
    "changes of a number": (lambda m: fl.Changes(5), TypeError, "model: expected an nn.Module, got int."),
    "a mask of rows": (
        lambda m: fl.train_only(m, {"w1": fl.entries(MASK)}),
        fl.ShapeError,
        "w1: entries: the mask has shape (10,), the tensor (10, 4). For whole rows pass fl.rows(mask).",
    ),
    "a column mask": (
        lambda m: fl.train_only(m, {"w1": fl.entries(MASK[:, None])}),
        fl.ShapeError,
        "the mask has shape (10, 1), the tensor (10, 4). For whole rows pass fl.rows(mask.flatten()).",
    ),
    "a mask of columns": (
        lambda m: fl.train_only(m, {"w1": fl.entries(MASK[:4])}),
        fl.ShapeError,
        "Pass fl.entries(mask.expand(10, 4)).",
    ),
    "a mask on its side": (
        lambda m: fl.train_only(m, {"w1": fl.entries(torch.ones(4, 10) > 0)}),
        fl.ShapeError,
        "Pass fl.entries(mask.T).",
    ),
    "a full mask for rows": (
        lambda m: fl.train_only(m, {"w1": fl.rows(torch.ones(10, 4) > 0)}),
        fl.ShapeError,
        "but the table has 10 rows. Pass a mask of one value a row; single entries are chosen by fl.entries(mask).",
    ),
    "a column mask for rows": (
        lambda m: fl.train_only(m, {"w1": fl.rows(MASK[:, None])}),
        fl.ShapeError,
        "Pass rows(mask.flatten()).",
    ),
    "a sparse mask": (
        lambda m: fl.entries((torch.ones(10, 4) > 0).to_sparse()),
        TypeError,
        "entries: the mask is a sparse tensor. Pass entries(mask.to_dense() != 0).",
    ),
    "a sparse mask for rows": (
        lambda m: fl.train_only(m, {"w1": fl.rows(MASK.to_sparse())}),
        fl.RowError,
        "w1: rows: the ids are a sparse tensor. Pass rows(ids.to_dense()).",
    ),
    "ids for entries": (lambda m: fl.entries([3, 4]), TypeError, "Whole rows are chosen by `rows(ids)`"),
    "a ragged mask": (
        lambda m: fl.entries([[True], [True, False]]),
        TypeError,
        "entries: expected a bool mask of the tensor's shape, got [[True], [True, False]].",
    ),
    "a sparse gate": (
        lambda m: fl.stop_gradient(m.w1, where=(torch.ones(10, 4) > 0).to_sparse()),
        TypeError,
        "where: a sparse tensor. Pass `where=mask.to_dense()`.",
    ),
    "a plan for an optimizer": (
        lambda m: torch.optim.SGD(fl.train_only(nn.Linear(2, 2), {"*": fl.everything}), lr=0.1),
        TypeError,
        "Give an optimizer plan.parameters()",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_beginners_mistake_gets_one_line_that_says_what_to_type_and_changes_nothing(name: str) -> None:
    model = Model()
    classes = [type(module) for module in model.modules()]
    mistake, error, says = MISTAKES[name]
    with pytest.raises(error, match=re.escape(says)) as raised:
        mistake(model)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250
    assert [type(module) for module in model.modules()] == classes
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("fix", ["rows(MASK)", "rows(MASK[:, None].flatten())", "entries(MASK[:4].expand(10, 4))"])
def test_what_the_errors_say_to_type_works(fix: str) -> None:
    model = Model()
    plan = fl.train_only(model, {"w1": eval(f"fl.{fix}")})
    assert 0 < plan.learned < 40


def test_a_pattern_that_matches_only_what_cannot_learn_is_an_error() -> None:
    model = Model()
    model.q8 = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    for selection in (fl.rows([1]), fl.everything):
        with pytest.raises(fl.SelectionError, match=r"'\*8' matches only tensors that cannot learn: q8: torch.int8"):
            fl.train_only(model, {"*8": selection})
    assert fl.train_only(model, {"*8": fl.nothing, "*": fl.everything}).learned == 40 + 40 + 25
