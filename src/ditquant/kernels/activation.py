"""Dynamic activation quantization: scales are computed from the input itself, at every call."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from ditquant.specs import ActSpec, check_divides

SMALLEST = torch.finfo(torch.float32).tiny  # no scale is smaller: subnormal ones are too coarse to divide by


@dataclass(frozen=True)
class QuantizedActivation:
    """x = scale * (values - zero_point), with `values` grouped as [..., G, g]; zero_point None means 0."""

    values: Int8[Tensor, "... G g"]
    scale: Float[Tensor, "... G 1"]
    zero_point: Float[Tensor, "... G 1"] | None

    def dequantize(self) -> Float[Tensor, "... K"]:
        """Return the float32 input that the codes stand for."""
        centred = self.values.float() if self.zero_point is None else self.values.float() - self.zero_point
        return (centred * self.scale).flatten(-2)


def quantize_activation(x: Float[Tensor, "... K"], spec: ActSpec) -> QuantizedActivation:
    """Quantize to signed codes of `spec.bits` bits, held in INT8.

    Symmetric: scale = clip max|x| / (2^(bits-1) - 1), so that without a clip the largest value is met exactly.
    Asymmetric: clip times the range from min(x, 0) to max(x, 0), in 2^bits - 1 steps. Granularity `sample` takes one
    scale for each entry of the first axis, and one for all of an input without such an axis ([L, K]).
    """
    group = spec.group_size or x.shape[-1]
    check_divides(group, x.shape[-1], "the layer")
    grouped = x.float().unflatten(-1, (-1, group))
    half = 2 ** (spec.bits - 1)
    if spec.symmetric:
        scale = _reduce(grouped.abs(), spec, torch.amax).mul(spec.clip).div(half - 1).clamp(min=SMALLEST)
        values, zero = torch.round(grouped / scale), None
        if spec.clip < 1:
            values = values.clamp(1 - half, half - 1)
    else:
        low, high = _reduce(grouped, spec, torch.amin).clamp(max=0), _reduce(grouped, spec, torch.amax).clamp(min=0)
        low, high = low * spec.clip, high * spec.clip
        scale = (high - low).div(2 * half - 1).clamp(min=SMALLEST)
        zero = torch.round(-low / scale) - half
        values = (torch.round(grouped / scale) + zero).clamp(-half, half - 1)
    return QuantizedActivation(values.to(torch.int8), scale, zero)


def fake_quantize(x: Float[Tensor, "... K"], spec: ActSpec) -> Float[Tensor, "... K"]:
    """Quantize and dequantize, in float32."""
    return quantize_activation(x, spec).dequantize()


def _reduce(grouped: Tensor, spec: ActSpec, reduce) -> Tensor:
    if grouped.numel() == 0:
        return grouped.new_zeros((*grouped.shape[:-1], 1))
    if spec.granularity in ("token", "group"):
        return reduce(grouped, dim=-1, keepdim=True)
    kept = 0 if spec.granularity == "tensor" or grouped.ndim <= 3 else 1
    found = reduce(grouped, dim=tuple(range(kept, grouped.ndim)), keepdim=True)
    return found.expand(*grouped.shape[:-1], 1)
