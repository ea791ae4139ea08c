"""What a kernel may do to an input on the way to its codes: smoothing, then one or two rotations of blocks."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """x * factor, then signs1 and Hadamard; with a permutation also permutation, signs2 and Hadamard.

    `factor` holds the words of bfloat16 [K]; `block`, a power of two that divides K, is the width of both Hadamard
    matrices, 0 without any; signs are packed bits; `permutation` int16 or int32 [K].
    """

    factor: Tensor | None = None
    block: int = 0
    signs1: Tensor | None = None
    permutation: Tensor | None = None
    signs2: Tensor | None = None
