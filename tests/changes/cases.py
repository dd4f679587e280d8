"""Tensors of every dtype from drawn bytes, a model that holds them, and a slow comparison of bytes."""

import torch
from hypothesis import strategies as st
from torch import nn

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.complex64, torch.complex128, torch.bool),
]
SHAPES = [(), (1,), (0,), (0, 3), (7,), (3, 5), (2, 3, 4), (40, 3), (1, 130)]


class Holder(nn.Module):
    """A model of buffers: `state_dict()` has them in this order."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def from_bytes(data, dtype, shape):
    """A tensor with these bytes; of bool, 0 and 1."""
    count = torch.empty(shape).numel() * dtype.itemsize
    raw = torch.frombuffer(bytearray(data[:count]) or bytearray(16), dtype=torch.uint8)[:count].clone()
    raw = raw % 2 if dtype == torch.bool else raw
    return raw.view(dtype).reshape(shape)


def raw_bytes(tensor):
    """The bytes of a tensor in the order of its flat indices."""
    return bytes(tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def entries_of(tensor):
    """The bytes of each entry: the slow truth that everything is compared with."""
    raw, size = raw_bytes(tensor), tensor.dtype.itemsize
    return [raw[start : start + size] for start in range(0, len(raw), size)]


@st.composite
def pairs(draw):
    """Two states of one description; in some entries of some tensors the bytes differ."""
    a, b = {}, {}
    for number in range(draw(st.integers(1, 3))):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
        size = torch.empty(shape).numel() * dtype.itemsize
        before = bytearray(draw(st.binary(min_size=size, max_size=size)))
        after = bytearray(before)
        for at in draw(st.lists(st.integers(0, max(0, size - 1)), max_size=draw(st.sampled_from([0, 2, 60])))):
            if size:
                after[at] ^= draw(st.sampled_from([1, 0x80, 0xFF]))
        a[f"t{number}"], b[f"t{number}"] = (from_bytes(bytes(each), dtype, shape) for each in (before, after))
    return a, b
