"""The salient branch of LRQ-DiT with stored matrices: R1 P R2, both rotations chosen greedily (DuQuant).

Differs from the paper: a step spreads a channel by a Householder reflection onto a random sign vector, which leaves the
directions spread before nearly untouched, instead of a dense random rotation; P deals by channel, for any width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditquant.errors import DitQuantError, damaged
from ditquant.specs import TransformSpec
from ditquant.stats import LayerStats
from ditquant.transforms.base import Transform
from ditquant.transforms.block_rotation import choose_block, work_dtype
from ditquant.transforms.fitters import need_stats, register_transform, sample_rows
from ditquant.transforms.options import check_values, stored_block
from ditquant.transforms.permute import check_permutation, index_dtype, permute, snake
from ditquant.transforms.state import check_state, hold
from ditquant.words import from_words

STEPS = 256
SAMPLE_ROWS = 256
BLOCK_ROWS = 4096
MAX_BLOCK = 1024


@register_transform("dual_rotation")
class DualRotation(Transform):
    """Two orthogonal matrices, each shared by all blocks, with a permutation between them that balances the blocks."""

    def __init__(
        self, rotation1: Float[Tensor, "b b"], permutation: Int[Tensor, " K"], rotation2: Float[Tensor, "b b"]
    ):
        super().__init__()
        self.in_features, self.block = len(permutation), len(rotation1)
        hold(self, rotation1=rotation1.float(), permutation=permutation, rotation2=rotation2.float())

    @classmethod
    def fit(
        cls, weight: Float[Tensor, "N K"], stats: LayerStats | None, *, block: int | None = 128, seed: int = 0
    ) -> "DualRotation":
        """Choose both matrices and the order on the sample, in float64."""
        check_values("dual_rotation", block=block, seed=seed)
        stats = need_stats("dual_rotation", weight, stats)
        block = _small(choose_block(weight.shape[1], block))
        generator = torch.Generator().manual_seed(seed)
        x = sample_rows(stats, SAMPLE_ROWS, weight.device).double()
        rotation1 = greedy_rotation(x.reshape(-1, block), generator)
        y = _rotate(x, rotation1)
        permutation = snake(y.abs().amax(0), block)
        rotation2 = greedy_rotation(permute(y, permutation).reshape(-1, block), generator)
        return cls(rotation1, permutation, rotation2)

    @classmethod
    def empty(cls, in_features: int, /, **options) -> "DualRotation":
        """Build it with matrices and order to be loaded; the option is the block in use."""
        block = _small(stored_block("dual_rotation", in_features, options))
        order = torch.zeros(in_features, dtype=index_dtype(in_features))
        return cls(torch.zeros(block, block), order, torch.zeros(block, block))

    def spec(self) -> TransformSpec:
        """Return the kind and the block in use."""
        return TransformSpec("dual_rotation", {"block": self.block})

    def forward(self, x: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        """Return x R1 P R2, rounded once."""
        return self._rotate_both(x, *self._rotations())

    def absorb(self, weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return the weight under the inverse transposed of the matrices as stored, so that the law is exact."""
        return self._rotate_both(weight, *(torch.linalg.inv(r.double()).T for r in self._rotations()))

    def _rotations(self) -> list[Float[Tensor, "b b"]]:
        return [from_words(words, torch.float32) for words in (self.rotation1, self.rotation2)]

    def _rotate_both(self, x: Tensor, rotation1: Tensor, rotation2: Tensor) -> Tensor:
        dtype = work_dtype(x.dtype)
        y = permute(_rotate(x.to(dtype), rotation1.to(dtype)), self.permutation)
        return _rotate(y, rotation2.to(dtype)).to(x.dtype)

    def check(self, name: str) -> None:
        """Matrices are orthogonal, the order is a permutation."""
        check_state(self, name)
        check_permutation(self.permutation, name)
        for rotation in self._rotations():
            wide = rotation.double()
            error = (wide @ wide.T - torch.eye(self.block, dtype=wide.dtype, device=wide.device)).abs().max()
            if not bool(error < 1e-3):
                raise damaged(f"{name}: a matrix of dual_rotation is not orthogonal")


def greedy_rotation(x: Float[Tensor, "R b"], generator: torch.Generator) -> Float[Tensor, "b b"]:
    """Spread the channel with the largest magnitude evenly, up to 256 times; return the prefix with the least range.

    Only the 4096 rows with the largest values are looked at.
    """
    rows, width = x.shape
    y = x[x.abs().amax(1).topk(min(rows, BLOCK_ROWS)).indices].double()
    rotation = torch.eye(width, dtype=y.dtype, device=y.device)
    best, lowest = rotation.clone(), float(y.max() - y.min())
    for _ in range(STEPS if width > 1 else 0):
        signs = torch.randint(0, 2, (width,), generator=generator) * 2 - 1
        normal = -signs.to(y) * width**-0.5
        normal[y.abs().amax(0).argmax()] += 1
        normal /= normal.norm()
        y, rotation = (m - 2 * torch.outer(m @ normal, normal) for m in (y, rotation))
        value_range = float(y.max() - y.min())
        if value_range < lowest:
            best, lowest = rotation, value_range
    return best


def _rotate(x: Float[Tensor, "... K"], rotation: Float[Tensor, "b b"]) -> Float[Tensor, "... K"]:
    return (x.unflatten(-1, (-1, len(rotation))) @ rotation).flatten(-2)


def _small(block: int) -> int:
    if block > MAX_BLOCK:
        raise DitQuantError(
            f"block {block} of transform 'dual_rotation' is too large to be stored. "
            f"Choose one up to {MAX_BLOCK}, or transform 'fast_dual_rotation'."
        )
    return block
