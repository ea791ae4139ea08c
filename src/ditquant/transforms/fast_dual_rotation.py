"""The salient branch of LRQ-DiT without stored matrices: D1 H P D2 H, D = random signs, H = block Hadamard.

Differs from the paper: signs and Hadamard matrices stand for the two greedy matrices of `dual_rotation`; the signs D2
are the best of 32 draws, chosen for every block by itself, which at the same storage is worth about 2 dB more than one
choice for all blocks.
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
from ditquant.transforms.signs import check_signs, draw_signs, empty_signs, pack_signs, unpack_signs
from ditquant.transforms.state import check_state, hold

FIRST_DRAWS = 2
BLOCK_DRAWS = 32
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
        hold(self, signs1=signs1, permutation=permutation, signs2=signs2)

    @classmethod
    def fit(
        cls, weight: Float[Tensor, "N K"], stats: LayerStats | None, *, block: int | None = 128, seed: int = 0
    ) -> "FastDualRotation":
        """Choose D2 block by block and D1 as a whole by what 4-bit tokens of the sample lose."""
        check_values("fast_dual_rotation", block=block, seed=seed)
        stats = need_stats("fast_dual_rotation", weight, stats)
        block = choose_block(weight.shape[1], block)
        x = sample_rows(stats, SCORE_ROWS, weight.device)
        # What a token loses is relative to its size; zero tokens stay zero.
        x = x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        generator = torch.Generator().manual_seed(seed)
        draws = [cls._draw(x, block, generator) for _ in range(FIRST_DRAWS)]
        return max(draws, key=lambda draw: token_sqnr_db(draw(x), SCORE_BITS))

    @classmethod
    def _draw(cls, x: Float[Tensor, "S K"], block: int, generator: torch.Generator) -> "FastDualRotation":
        width = x.shape[1]
        signs1 = draw_signs(width, generator).to(x.device)
        y = rotate(x * unpack_signs(signs1, width, x.dtype), block)
        permutation = snake(y.abs().amax(0), block)
        return cls(signs1, permutation, _flattest_signs(permute(y, permutation), block, generator), block)

    @classmethod
    def empty(cls, in_features: int, /, **options) -> "FastDualRotation":
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

    def check(self, name: str) -> None:
        """The order is a permutation, signs are bits of channels only."""
        check_state(self, name)
        check_permutation(self.permutation, name)
        for signs in (self.signs1, self.signs2):
            check_signs(signs, self.in_features, name)


def _flattest_signs(y: Float[Tensor, "S K"], block: int, generator: torch.Generator) -> UInt8[Tensor, " P"]:
    """Draw signs and keep, in every block, those under which its rotated maximum (in the 4-mean of tokens) is least."""
    width = y.shape[1]
    best, lowest = torch.ones(width, device=y.device), torch.full((width // block, 1), torch.inf, device=y.device)
    for _ in range(BLOCK_DRAWS):
        signs = unpack_signs(draw_signs(width, generator).to(y.device), width, y.dtype)
        height = rotate(y * signs, block).unflatten(-1, (-1, block)).abs().amax(-1).pow(4).mean(0)[:, None]
        best = torch.where(height < lowest, signs.view(-1, block), best.view(-1, block))
        lowest = torch.minimum(height, lowest)
    return pack_signs(best.flatten())
