"""Cached packed weights give the bits of weights that are packed at every call, and are never stale."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from frostline.tagger.network import packed_lstm

needs_onednn = pytest.mark.skipif(packed_lstm._pack is None, reason="torch was built without oneDNN")


def _lstm(seed: int = 0) -> nn.LSTM:
    torch.manual_seed(seed)
    return nn.LSTM(5, 24, batch_first=True)


def _inputs(sentences: int = 3, tokens: int = 7) -> Tensor:
    return torch.randn(sentences, tokens, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets an entry whenever weights are packed."""
    calls: list[Any] = []
    pack: Any = packed_lstm._pack

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return pack(*arguments)

    if pack is not None:
        monkeypatch.setattr(packed_lstm, "_pack", counted)
    return calls


@needs_onednn
@torch.no_grad()
def test_batches_of_any_size_get_the_bits_of_the_plain_layer_from_weights_packed_once(packings: list[Any]) -> None:
    lstm = _lstm()
    for sentences, tokens in [(1, 1), (1, 40), (64, 3), (17, 9), (1, 7)]:
        inputs = _inputs(sentences, tokens)
        found = packed_lstm.states(lstm, inputs)
        assert found.shape == (sentences, tokens, 24)
        assert torch.equal(found, lstm(inputs)[0])
    assert len(packings) == 1


def _optimizer_step(lstm: nn.LSTM) -> None:
    with torch.enable_grad():
        packed_lstm.states(lstm, _inputs()).square().sum().backward()
    torch.optim.AdamW(lstm.parameters(), lr=0.1).step()


def _double(name: str) -> Callable[[nn.LSTM], object]:
    return lambda lstm: lstm.get_parameter(name).mul_(2)


def _move_to_other_memory(lstm: nn.LSTM) -> None:
    weight = lstm.get_parameter("weight_hh_l0")
    weight.data = 2 * weight.data


def _change_as_float64(lstm: nn.LSTM) -> None:
    _double("weight_hh_l0")(lstm.double())
    lstm.float()


CHANGES: dict[str, Callable[[nn.LSTM], object]] = {
    "a step": _optimizer_step,
    "weights from state to state": _double("weight_hh_l0"),
    "weights of the inputs": _double("weight_ih_l0"),
    "a bias": _double("bias_hh_l0"),
    "copied in": lambda lstm: lstm.load_state_dict(_lstm(1).state_dict()),
    "assigned": lambda lstm: lstm.load_state_dict(_lstm(1).state_dict(), assign=True),
    "other memory": _move_to_other_memory,
    "as float64": _change_as_float64,
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_weights_are_packed_again(change: Callable[[nn.LSTM], object]) -> None:
    lstm, inputs = _lstm(), _inputs()
    before = packed_lstm.states(lstm, inputs)
    change(lstm)
    after = packed_lstm.states(lstm, inputs)
    assert torch.equal(after, lstm(inputs)[0])
    assert not torch.allclose(after, before)


@needs_onednn
@torch.no_grad()
def test_the_memory_of_packed_weights_is_not_reused_before_they_are_packed_again() -> None:
    """Values in it would be taken for the old ones: `weight.data = ...` frees memory without a new version."""
    lstm = _lstm()
    packed_lstm.states(lstm, _inputs())
    storages = [StorageWeakRef(lstm.get_parameter(name).untyped_storage()) for name in ("weight_ih_l0", "weight_hh_l0")]
    lstm.half().float()
    assert [storage.expired() for storage in storages] == [False, False]
    assert torch.equal(packed_lstm.states(lstm, _inputs()), lstm(_inputs())[0])
    assert [storage.expired() for storage in storages] == [True, True]


def test_with_gradient_states_and_gradients_are_those_of_the_plain_layer(packings: list[Any]) -> None:
    lstm, other = _lstm(), _lstm()
    found, expected = packed_lstm.states(lstm, _inputs()), other(_inputs())[0]
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for weight, twin in zip(lstm.parameters(), other.parameters(), strict=True):
        assert weight.grad is not None
        assert twin.grad is not None
        assert torch.equal(weight.grad, twin.grad)
        assert weight.grad.abs().sum() > 0
    assert packings == []


@torch.no_grad()
def test_inputs_that_cannot_use_packed_weights_go_to_the_plain_layer(
    packings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lstm, inputs = _lstm(), _inputs()
    expected = lstm(inputs)[0]
    torch.testing.assert_close(
        packed_lstm.states(_lstm().double(), inputs.double()), expected.double(), check_dtype=False
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed_lstm.states(lstm, inputs).dtype == torch.bfloat16
    with torch.inference_mode():
        torch.testing.assert_close(packed_lstm.states(_lstm(), inputs), expected)
    assert packed_lstm.states(lstm, inputs[:0]).shape == (0, 7, 24)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    torch.testing.assert_close(packed_lstm.states(lstm, inputs), expected)
    assert packings == []


@torch.no_grad()
def test_without_onednn_the_plain_layer_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_lstm, "_pack", None)
    lstm = _lstm()
    assert torch.equal(packed_lstm.states(lstm, _inputs()), lstm(_inputs())[0])


@needs_onednn
@torch.no_grad()
def test_packed_weights_are_freed_with_their_layer_and_a_copy_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_lstm, "_cache", WeakKeyDictionary())  # without the layers of other tests
    lstm = _lstm()
    expected = packed_lstm.states(lstm, _inputs())
    assert list(packed_lstm._cache) == [lstm]
    other = copy.deepcopy(lstm)
    _double("weight_hh_l0")(other)
    assert not torch.equal(packed_lstm.states(other, _inputs()), expected)
    assert torch.equal(packed_lstm.states(lstm, _inputs()), expected)
    del lstm, other
    gc.collect()
    assert not packed_lstm._cache
