"""Dynamic scales and codes of activations, as `kernels.activation` defines them."""

import triton
import triton.language as tl


@triton.jit
def nearest(x):
    """Round to the nearest integer, halves to even, for |x| < 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def token_scale(y, clip, STEPS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Return scale and zero point [R] of rows y [R, K]; STEPS is 2^(bits-1). NaN and infinity make the scale NaN."""
    bad = tl.sum(y * 0.0, 1)
    if SYMMETRIC:
        scale = tl.maximum(tl.max(tl.abs(y), 1) * clip / (STEPS - 1), 1.1754943508222875e-38) + bad
        zero = tl.zeros_like(scale)
    else:
        low = tl.minimum(tl.min(y, 1), 0.0) * clip
        high = tl.maximum(tl.max(y, 1), 0.0) * clip
        scale = tl.maximum((high - low) / (2 * STEPS - 1), 1.1754943508222875e-38)
        zero = nearest(-low / scale) - STEPS
        scale += bad
    return scale, zero


@triton.jit
def to_codes(y, scale, zero, STEPS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Return the codes of rows y [R, K], still as floats."""
    codes = nearest(y * (1.0 / scale)[:, None])
    low = 1.0 - STEPS
    if not SYMMETRIC:
        codes += zero[:, None]
        low = 0.0 - STEPS
    return tl.minimum(tl.maximum(codes, low), STEPS - 1.0)
