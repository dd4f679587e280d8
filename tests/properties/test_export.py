"""torch.export: its strict kind traces a partial module; its other kind says what to do; a merged module is plain."""

from __future__ import annotations

import warnings

import pytest
import torch

import frostline as fl

from .modules import KINDS, Kind
from .run import bits

DENSE = [name for name, kind in KINDS.items() if kind.traced and not kind.sparse]


def moved(kind: Kind) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A module of which rows have moved, an input, and its output."""
    torch.manual_seed(0)
    model = kind.build()
    name = next(name for name, parameter in model.named_parameters() if parameter.ndim > 1)
    before, x = dict(model.named_parameters())[name].detach().clone(), kind.batch(torch.Generator().manual_seed(0))
    (learned,) = fl.train_only(model, {name: fl.rows([1, 0])}).parameters()
    with torch.no_grad():
        untouched = model(x)
        learned.add_(0.5)
        out = model(x)
    assert not torch.equal(out, untouched)
    frozen = dict(model.named_parameters())[name]
    assert torch.equal(bits(frozen)[2:], bits(before)[2:])
    return model, x, out


def exported(model: torch.nn.Module, x: torch.Tensor, strict: bool) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter has many of its own
        return torch.export.export(model, (x,), strict=strict).module()


@pytest.mark.parametrize("kind", DENSE)
def test_a_strict_export_has_what_was_learned(kind: str) -> None:
    model, x, out = moved(KINDS[kind])
    torch.testing.assert_close(exported(model, x, strict=True)(x), out, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.traced])
def test_an_export_that_is_not_strict_says_to_merge_first_and_then_works(kind: str) -> None:
    model, x, out = moved(KINDS[kind])
    with pytest.raises(fl.PartialTensorError, match=r"Call fl.merge\(model\) first"):
        exported(model, x, strict=False)
    fl.merge(model)
    torch.testing.assert_close(exported(model, x, strict=False)(x), out, rtol=1e-5, atol=1e-6)


def test_a_strict_export_of_a_sparse_lookup_names_the_function_that_needs_eager() -> None:
    model, x, _ = moved(KINDS["embedding, sparse"])
    with pytest.raises(torch._dynamo.exc.Unsupported, match="sparse_gradient_needs_eager"):
        exported(model, x, strict=True)
