"""An LSTM without gradient, its weights packed once instead of at every call.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens of the longest
    D  width of an input          H  units

The idea: on a CPU torch's LSTM is oneDNN's, which wants its weights in an order of its own. `nn.LSTM` puts them in that
order at every call: for one sentence of usual length, as much work as reading it. Here they are kept until the weights
change, which is noticed as autograd notices it: by another tensor, another place in memory or another version. Numbers
that are written past torch's notice, through `weight.data` or by another process, are not seen. The kernel is the same
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
    """Packed weights, the plain ones they were made of, and the memory of those: held, so that nothing else gets it."""

    weights: list[Tensor]
    plain: list[Tensor]
    memory: list[Tensor]
    stamps: list[tuple[int, int]]


_kept: WeakKeyDictionary[nn.LSTM, _Packed] = WeakKeyDictionary()


def states(lstm: nn.LSTM, inputs: Tensor) -> Tensor:
    """Return the state after each token, shape (B, T, H): `lstm(inputs)[0]`, which serves where nothing can be packed.

    Args:
        lstm: One layer in one direction, `batch_first`, with biases.
        inputs: Shape (B, T, D).

    Cost: that of `lstm`; without gradient, in float32 on a CPU, less than that by a copy of the weights. Their packed
    form, and the memory that it was made of, stay as long as `lstm` does or until it reads with others.

    Example:
        >>> lstm, inputs = nn.LSTM(4, 6, batch_first=True), torch.randn(2, 3, 4)
        >>> with torch.no_grad():
        ...     torch.equal(states(lstm, inputs), lstm(inputs)[0])
        True
    """
    plain_into, plain_from_state, first_bias, second_bias = lstm.all_weights[0]
    if torch.is_grad_enabled() or not _served(inputs) or plain_into.is_inference():  # of the last, no version is kept
        return lstm(inputs)[0]  # type: ignore[no-any-return]
    into, from_state = _packed(lstm, [plain_into, plain_from_state])
    start = inputs.new_zeros(1, len(inputs), lstm.hidden_size)
    found = torch.mkldnn_rnn_layer(
        inputs.transpose(0, 1).contiguous(), into, from_state, first_bias, second_bias, start, start,
        reverse=False, batch_sizes=[], mode=_LSTM, hidden_size=lstm.hidden_size, num_layers=1, has_biases=True,
        bidirectional=False, batch_first=False, train=False,
    )  # fmt: skip
    return found[0].transpose(0, 1)


def _served(inputs: Tensor) -> bool:
    if _pack is None or inputs.device.type != "cpu" or inputs.dtype != torch.float32 or not inputs.numel():
        return False
    return bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu")


def _packed(lstm: nn.LSTM, plain: list[Tensor]) -> list[Tensor]:
    """Return the two weights of `lstm`, packed now or earlier."""
    stamps = [(weight.data_ptr(), weight._version) for weight in plain]
    kept = _kept.get(lstm)
    if kept is None or kept.stamps != stamps or any(a is not b for a, b in zip(kept.plain, plain, strict=True)):
        weights = _pack(*plain, lstm.hidden_size, False, True, False)
        kept = _Packed(weights, plain, [weight.detach() for weight in plain], stamps)
        _kept[lstm] = kept
    return kept.weights
