"""An LSTM without gradient whose weights are packed once instead of at every call.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens of the longest
    D  width of an input          H  units

The idea: on a CPU torch's LSTM is oneDNN's, which wants its weights in a layout of its own. `nn.LSTM` converts them at
every call: for a single sentence of usual length, as much work as reading it. Here the packed weights are cached until
the weights change, which is detected as autograd does: by another tensor, another memory address or another version.
Writes that torch does not see, through `weight.data` or by another process, are not detected. The kernel is the same
and so are the bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# None where torch was built without oneDNN. It is the same, as `torch.mkldnn_rnn_layer` is, from torch 2.6 to 2.15.
_pack: Any = getattr(torch.ops.mkldnn, "_reorder_mkldnn_rnn_layer_weight", None)
_LSTM = 2  # torch's number for this kind of layer


class _Packed(NamedTuple):
    """Packed weights, the plain weights they were made of, and the memory of those, held so that it is not reused."""

    weights: list[Tensor]
    plain: list[Tensor]
    memory: list[Tensor]
    stamps: list[tuple[int, int]]


_cache: WeakKeyDictionary[nn.LSTM, _Packed] = WeakKeyDictionary()


def states(lstm: nn.LSTM, inputs: Tensor) -> Tensor:
    """Return the state after each token, shape (B, T, H): `lstm(inputs)[0]`, which is called where packing is not used.

    Args:
        lstm: One layer in one direction, `batch_first`, with biases.
        inputs: Shape (B, T, D).

    Cost: that of `lstm`; without gradient, in float32 on a CPU, less than that by a copy of the weights. The packed
    weights, and the memory that they were made of, live as long as `lstm` does or until its weights change.

    Example:
        >>> lstm, inputs = nn.LSTM(4, 6, batch_first=True), torch.randn(2, 3, 4)
        >>> with torch.no_grad():
        ...     torch.equal(states(lstm, inputs), lstm(inputs)[0])
        True
    """
    input_weight, recurrent_weight, first_bias, second_bias = lstm.all_weights[0]
    # Inference tensors have no version, so a change of theirs would go unnoticed.
    if torch.is_grad_enabled() or not _supported(inputs) or input_weight.is_inference():
        return lstm(inputs)[0]  # type: ignore[no-any-return]
    packed_input, packed_recurrent = _packed(lstm, [input_weight, recurrent_weight])
    zeros = inputs.new_zeros(1, len(inputs), lstm.hidden_size)
    found = torch.mkldnn_rnn_layer(
        inputs.transpose(0, 1).contiguous(), packed_input, packed_recurrent, first_bias, second_bias, zeros, zeros,
        reverse=False, batch_sizes=[], mode=_LSTM, hidden_size=lstm.hidden_size, num_layers=1, has_biases=True,
        bidirectional=False, batch_first=False, train=False,
    )  # fmt: skip
    return found[0].transpose(0, 1)


def _supported(inputs: Tensor) -> bool:
    if _pack is None or inputs.device.type != "cpu" or inputs.dtype != torch.float32 or not inputs.numel():
        return False
    return bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu")


def _packed(lstm: nn.LSTM, plain: list[Tensor]) -> list[Tensor]:
    """Return the two weights of `lstm`, packed now or earlier."""
    stamps = [(weight.data_ptr(), weight._version) for weight in plain]
    cached = _cache.get(lstm)
    if cached is None or cached.stamps != stamps or any(a is not b for a, b in zip(cached.plain, plain, strict=True)):
        weights = _pack(*plain, lstm.hidden_size, False, True, False)
        cached = _Packed(weights, plain, [weight.detach() for weight in plain], stamps)
        _cache[lstm] = cached
    return cached.weights
