"""Codes of any width from 1 to 8 bits, packed without gaps: value i of a row takes the bits [i*bits, (i+1)*bits)."""

import torch
from jaxtyping import UInt8
from torch import Tensor


def packed_width(in_features: int, bits: int) -> int:
    """Bytes of a row."""
    return (in_features * bits + 7) // 8


def pack(codes: UInt8[Tensor, "N K"], bits: int) -> UInt8[Tensor, "N P"]:
    """Pack codes below 2^bits, little-endian; the last byte of a row is filled with zero bits."""
    if bits == 8:
        return codes.contiguous()
    n, k = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -k % 8)).view(n, -1, 8)
    out = torch.zeros(n, padded.shape[1], bits, dtype=torch.uint8, device=codes.device)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        out[..., byte] |= padded[..., i] << shift
        if shift + bits > 8:
            out[..., byte + 1] |= padded[..., i] >> (8 - shift)
    return out.view(n, -1)[:, : packed_width(k, bits)].contiguous()


def unpack(packed: UInt8[Tensor, "N P"], bits: int, in_features: int) -> UInt8[Tensor, "N K"]:
    """Invert `pack`."""
    if bits == 8:
        return packed
    n = packed.shape[0]
    groups = (in_features + 7) // 8
    bytes_ = torch.nn.functional.pad(packed, (0, groups * bits - packed.shape[1])).view(n, groups, bits)
    out = torch.empty(n, groups, 8, dtype=torch.uint8, device=packed.device)
    mask = (1 << bits) - 1
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        value = bytes_[..., byte] >> shift
        if shift + bits > 8:
            value = value | (bytes_[..., byte + 1] << (8 - shift))
        out[..., i] = value & mask
    return out.view(n, -1)[:, :in_features]
