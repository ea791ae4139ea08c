"""The salient branch of LRQ-DiT without stored matrices: D1 H P D2 H, the best of 16 sign draws.

Differs from the paper: random signs and block Hadamard matrices stand for the two greedy matrices of `dual_rotation`.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ditquant.specs import TransformSpec
from ditquant.stats import LayerStats
from ditquant.transforms.base import Transform
from ditquant.transforms.block_rotation import choose_block, rotate, work_dtype
from ditquant.transforms.fake_quantize import token_sqnr_db
from ditquant.transforms.fitters import need_stats, register_transform, sample_rows
from ditquant.transforms.options import check_values, stored_block
from ditquant.transforms.permute import check_permutation, index_dtype, permute, snake
from ditquant.transforms.signs import check_signs, draw_signs, empty_signs, unpack_signs

DRAWS = 16
SCORE_ROWS = 256
SCORE_BITS = 4


@register_transform("fast_dual_rotation")
class FastDualRotation(Transform):
    """Two block Hadamard rotations with a permutation between them that balances the blocks."""

    def __init__(
        self, signs1: UInt8[Tensor, " P"], permutation: Int[Tensor, " K"], signs2: UInt8[Tensor, " P"], block: int
    ):
        super().__init__()
        self.in_features, self.block = len(permutation), block
        self.register_buffer("signs1", signs1)
        self.register_buffer("permutation", permutation)
        self.register_buffer("signs2", signs2)

    @classmethod
    def fit(
        cls, weight: Float[Tensor, "N K"], stats: LayerStats | None, *, block: int | None = 128, seed: int = 0
    ) -> "FastDualRotation":
        """Keep the draw whose rotated sample loses least in 4-bit tokens."""
        check_values("fast_dual_rotation", block=block, seed=seed)
        stats = need_stats("fast_dual_rotation", weight, stats)
        block = choose_block(weight.shape[1], block)
        x = sample_rows(stats, SCORE_ROWS, weight.device)
        generator = torch.Generator().manual_seed(seed)
        draws = [cls._draw(x, block, generator) for _ in range(DRAWS)]
        return max(draws, key=lambda draw: token_sqnr_db(draw(x), SCORE_BITS))

    @classmethod
    def _draw(cls, x: Float[Tensor, "S K"], block: int, generator: torch.Generator) -> "FastDualRotation":
        width = x.shape[1]
        signs1, signs2 = (draw_signs(width, generator).to(x.device) for _ in range(2))
        magnitude = rotate(x * unpack_signs(signs1, width, x.dtype), block).abs().amax(0)
        return cls(signs1, snake(magnitude, block), signs2, block)

    @classmethod
    def empty(cls, in_features: int, **options) -> "FastDualRotation":
        """Build it with signs and order to be loaded; the option is the block in use."""
        block = stored_block("fast_dual_rotation", in_features, options)
        order = torch.zeros(in_features, dtype=index_dtype(in_features))
        return cls(empty_signs(in_features), order, empty_signs(in_features), block)

    def spec(self) -> TransformSpec:
        """Return the kind and the block in use."""
        return TransformSpec("fast_dual_rotation", {"block": self.block})

    def forward(self, x: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        """Return x D1 H P D2 H, rounded once."""
        y = x.to(work_dtype(x.dtype))
        y = rotate(y * unpack_signs(self.signs1, self.in_features, y.dtype), self.block)
        y = permute(y, self.permutation)
        y = rotate(y * unpack_signs(self.signs2, self.in_features, y.dtype), self.block)
        return y.to(x.dtype)

    def absorb(self, weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return the weight under the same rotation."""
        return self(weight)

    def check(self) -> None:
        """The order is a permutation, signs are bits of channels only."""
        check_permutation(self.permutation, "fast_dual_rotation")
        for signs in (self.signs1, self.signs2):
            check_signs(signs, self.in_features, "signs of transform 'fast_dual_rotation'")
