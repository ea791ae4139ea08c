"""Scales, zero points and codes of format `affine`: from minimum and maximum, or clipped where that is better."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditquant.formats.base import Params
from ditquant.specs import WeightSpec

COARSE = torch.logspace(0, -1.2, 25).tolist()  # clip ratios: the largest weight may be 15 times what is worth keeping
FINE = torch.logspace(-0.04, 0.04, 9).tolist()  # around the best of them


def fit_affine(
    grouped: Float[Tensor, "N G g"], spec: WeightSpec, clip: str | None, power: Float[Tensor, "#G g"]
) -> Params:
    """Return the parameters of every row and group.

    Symmetric: scale = max|w| / (2^(bits-1) - 1). Asymmetric: the range is extended to include zero. `clip` "mse"
    multiplies both ends of each range by the ratio, at most 1, of least squared error weighted by `power`.
    """
    whole = _params(grouped, spec, torch.ones(grouped.shape[:2]))
    if clip is None:
        return whole
    best = torch.ones(grouped.shape[:2])
    least = _error(grouped, whole, spec, power)
    for factors in (COARSE, FINE):
        for ratio in [(best * factor).clamp(max=1) for factor in factors]:
            error = _error(grouped, _params(grouped, spec, ratio), spec, power)
            best, least = torch.where(error < least, ratio, best), torch.minimum(error, least)
    return _params(grouped, spec, best)


def round_affine(grouped: Float[Tensor, "N G g"], params: Params, spec: WeightSpec) -> UInt8[Tensor, "N G g"]:
    """Return the nearest codes."""
    scale = params["scale"][..., None]
    codes = torch.round(grouped / torch.where(scale > 0, scale, 1)) + zero_point(params, spec)[..., None]
    return codes.clamp(0, 2**spec.bits - 1).to(torch.uint8)


def zero_point(params: Params, spec: WeightSpec) -> Float[Tensor, "N G"]:
    """Return the code of zero."""
    if spec.symmetric:
        return torch.full_like(params["scale"], 2 ** (spec.bits - 1))
    return params["zero_point"].float()


def _params(grouped: Tensor, spec: WeightSpec, ratio: Float[Tensor, "N G"]) -> Params:
    if spec.symmetric:
        return {"scale": grouped.abs().amax(-1) * ratio / (2 ** (spec.bits - 1) - 1)}
    low, high = grouped.amin(-1).clamp(max=0) * ratio, grouped.amax(-1).clamp(min=0) * ratio
    scale = (high - low) / (2**spec.bits - 1)
    zero = torch.round(-low / torch.where(scale > 0, scale, 1))
    return {"scale": scale, "zero_point": zero.to(torch.uint8)}


def _error(grouped: Tensor, params: Params, spec: WeightSpec, power: Tensor) -> Float[Tensor, "N G"]:
    centred = round_affine(grouped, params, spec) - zero_point(params, spec)[..., None]
    return (centred * params["scale"][..., None] - grouped).square().mul(power).sum(-1)
