"""Random signs, then a block Hadamard rotation (QuaRot; the mild branch of LRQ-DiT, section "ARS").

Differs from the paper: blocks of 128 channels by default, any width by construction (see `hadamard_matrix`).
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditquant.specs import TransformSpec
from ditquant.stats import LayerStats
from ditquant.transforms.base import Transform
from ditquant.transforms.block_rotation import choose_block, rotate, work_dtype
from ditquant.transforms.fitters import register_transform
from ditquant.transforms.options import check_values, stored_block
from ditquant.transforms.signs import check_signs, draw_signs, empty_signs, unpack_signs
from ditquant.transforms.state import check_state, hold


@register_transform("hadamard")
class Hadamard(Transform):
    """x D H with D = diag(+-1) stored in bits and H block-diagonal, orthonormal and not stored."""

    def __init__(self, signs: UInt8[Tensor, " P"], in_features: int, block: int):
        super().__init__()
        self.in_features, self.block = in_features, block
        hold(self, signs=signs)

    @classmethod
    def fit(
        cls, weight: Float[Tensor, "N K"], stats: LayerStats | None = None, *, block: int | None = 128, seed: int = 0
    ) -> "Hadamard":
        """Draw the signs; needs no data. `block` None rotates the full width, see `choose_block` for other widths."""
        check_values("hadamard", block=block, seed=seed)
        width = weight.shape[1]
        signs = draw_signs(width, torch.Generator().manual_seed(seed))
        return cls(signs.to(weight.device), width, choose_block(width, block))

    @classmethod
    def empty(cls, in_features: int, /, **options) -> "Hadamard":
        """Build it with signs to be loaded; the option is the block in use."""
        return cls(empty_signs(in_features), in_features, stored_block("hadamard", in_features, options))

    def spec(self) -> TransformSpec:
        """Return the kind and the block in use."""
        return TransformSpec("hadamard", {"block": self.block})

    def forward(self, x: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        """Return x D H."""
        return rotate(x * unpack_signs(self.signs, self.in_features, x.dtype), self.block)

    def absorb(self, weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return weight D H, rounded once."""
        return self(weight.to(work_dtype(weight.dtype))).to(weight.dtype)

    def check(self, name: str) -> None:
        """Signs are bits of channels only."""
        check_state(self, name)
        check_signs(self.signs, self.in_features, name)
