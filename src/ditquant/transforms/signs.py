"""Random signs of channels, stored as one bit each: a set bit means -1."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditquant.errors import damaged
from ditquant.formats.packing import pack, packed_width


def draw_signs(in_features: int, generator: torch.Generator) -> UInt8[Tensor, " P"]:
    """Draw packed signs; the same on every device, the generator is on the CPU."""
    return pack(torch.randint(0, 2, (1, in_features), generator=generator, dtype=torch.uint8), 1)[0]


def pack_signs(signs: Float[Tensor, " K"]) -> UInt8[Tensor, " P"]:
    """Store +1 and -1 in bits."""
    return pack((signs < 0).to(torch.uint8)[None], 1)[0]


def empty_signs(in_features: int) -> UInt8[Tensor, " P"]:
    """Packed signs to be loaded, all +1."""
    return torch.zeros(packed_width(in_features, 1), dtype=torch.uint8)


def unpack_signs(packed: UInt8[Tensor, " P"], in_features: int, dtype: torch.dtype) -> Float[Tensor, " K"]:
    """Return +1 and -1 as floating point numbers."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] >> shifts) & 1
    return 1 - 2 * bits.flatten()[:in_features].to(dtype)


def check_signs(packed: UInt8[Tensor, " P"], in_features: int, layer: str) -> None:
    """Refuse signs with bits set behind the last channel."""
    if in_features % 8 and int(packed[-1]) >> in_features % 8:
        raise damaged(f"{layer}: signs have bits set behind channel {in_features}")
