"""Round to nearest between the minimum and the maximum of every row or group."""

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.formats import PackedWeight
from ditquant.quantizers.base import DATA_FREE, QUANTIZERS, prepare
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats


@QUANTIZERS.register("rtn")
def rtn(weight: Float[Tensor, "N K"], spec: WeightSpec, stats: LayerStats | None = None) -> PackedWeight:
    """Quantize to format `affine`; needs no statistics.

    Symmetric: scale = max|w| / (2^(bits-1) - 1). Asymmetric: the range is extended to include zero.
    """
    weight = prepare(weight, spec, "affine")
    grouped = weight.unflatten(1, (spec.groups(weight.shape[1]), -1))
    top = 2**spec.bits - 1
    if spec.symmetric:
        half = 2 ** (spec.bits - 1)
        scale = grouped.abs().amax(-1) / (half - 1)
        zero, params = torch.full_like(scale, half), {"scale": scale}
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scale = (high - low) / top
        zero = torch.round(-low / _nonzero(scale))
        params = {"scale": scale, "zero_point": zero.to(torch.uint8)}
    codes = (torch.round(grouped / _nonzero(scale)[..., None]) + zero[..., None]).clamp(0, top)
    return PackedWeight.from_codes(codes.flatten(1).to(torch.uint8), params, spec)


DATA_FREE.add("rtn")


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1)
