"""The plain quantizer by which fits compare rotations: symmetric, uniform, one scale a row."""

import torch
from jaxtyping import Float
from torch import Tensor


def fake_quantize(rows: Float[Tensor, "R K"], bits: int | None) -> Float[Tensor, "R K"]:
    """Round every row to 2^bits - 1 values from -max to max; `bits` None returns it as it is."""
    if bits is None:
        return rows
    scale = rows.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    scale = torch.where(scale > 0, scale, 1)
    return (rows / scale).round() * scale


def sqnr_db(reference: Float[Tensor, "R K"], value: Float[Tensor, "R K"]) -> float:
    """Signal to quantization noise of all rows together, in dB; infinite if they are equal."""
    signal, noise = reference.double().square().sum(), (value - reference).double().square().sum()
    return float(10 * torch.log10(signal / noise)) if noise > 0 else float("inf")


def token_sqnr_db(x: Float[Tensor, "R K"], bits: int) -> float:
    """Mean over tokens of each token's own SQNR after quantization, in dB; zero tokens are left out."""
    signal, noise = x.double().square().sum(-1), (fake_quantize(x, bits) - x).double().square().sum(-1)
    seen = (signal > 0) & (noise > 0)
    return float((10 * torch.log10(signal[seen] / noise[seen])).mean()) if bool(seen.any()) else float("inf")
