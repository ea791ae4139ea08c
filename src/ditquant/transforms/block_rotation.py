"""Multiply every block of channels by one flat orthonormal matrix, as successive small matrix products."""

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.transforms.hadamard_matrix import divisors, factors, flat_matrix, flatness, is_hadamard

_SPREAD = 8
_CONSTANTS: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def choose_block(in_features: int, block: int | None) -> int:
    """Return the width of the blocks: `block` if it divides the channels, None or too large for the full width.

    Otherwise the divisor below it that spreads one channel furthest; the full width where none spreads it at all.

    Raises:
        DitQuantError: the full width has a prime factor above 4096.
    """
    if block is not None and block < in_features:
        if in_features % block == 0:
            return block
        best = max((d for d in divisors(in_features) if d <= block), key=lambda d: d / flatness(d))
        if best / flatness(best) >= _SPREAD:
            return best
    factors(in_features)
    return in_features


@torch.compiler.assume_constant_result
def constant(order: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `flat_matrix(order)` on a device; one tensor is shared by all layers, so none is in a state dict."""
    key = (order, device, dtype)
    if key not in _CONSTANTS:
        # Layers may first run under inference mode and be trained (LoRA) later.
        with torch.inference_mode(False), torch.no_grad():
            matrix = torch.tensor(flat_matrix(order), dtype=torch.float64, device="cpu").to(device, dtype)
        if type(matrix) is not Tensor:  # a tracer's stand-in
            return matrix
        _CONSTANTS[key] = matrix
    return _CONSTANTS[key]


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: at least float32, so that a 16-bit result is rounded once."""
    return torch.promote_types(dtype, torch.float32)


def _matmul_dtype(order: int, dtype: torch.dtype) -> torch.dtype:
    """`dtype` itself if +-1/sqrt(order) survives in it: 1/sqrt(128) does in bfloat16, 1/sqrt(112) does not."""
    survives = abs(float(torch.tensor(order**-0.5, dtype=dtype, device="cpu")) * order**0.5 - 1)
    exact = is_hadamard(order) and survives < torch.finfo(dtype).eps / 32
    return dtype if exact else work_dtype(dtype)


@torch.compiler.assume_constant_result
def _stages(block: int, dtype: torch.dtype) -> tuple[tuple[int, ...], torch.dtype]:
    split = factors(block)
    return split, _matmul_dtype(block, dtype) if len(split) == 1 else work_dtype(dtype)


def rotate(x: Float[Tensor, "... K"], block: int) -> Float[Tensor, "... K"]:
    """Multiply every block of channels, in the dtype of `x`; the inverse transposed is the same map."""
    split, dtype = _stages(block, x.dtype)
    width, y = x.shape[-1], x.to(dtype)
    for order in split:
        # Each pass moves the factor's axis to the end: after all passes the axes stand as they did.
        # One flat product: batched ones of a few rows each are many times slower.
        y = y.unflatten(-1, (width // block, order, block // order)).transpose(-1, -2).reshape(-1, order)
        y = (y @ constant(order, x.device, dtype)).view(x.shape)
    return y.to(x.dtype)
