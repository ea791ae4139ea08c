"""Format `affine`: w = scale * (code - zero_point), one scale a row or a row's group; symmetric or with zero points.

Zero points are codes themselves, so every group's range includes zero: a one-signed group keeps its values.
"""

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from ditquant.formats.base import FORMATS, Params
from ditquant.specs import WeightSpec


class Affine:
    """Params: scale float32 [N, G]; without `symmetric` also zero_point uint8 [N, G]."""

    def param_shapes(
        self, spec: WeightSpec, rows: int, in_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of the parameters."""
        shape = (rows, spec.groups(in_features))
        shapes = {"scale": (shape, torch.float32)}
        return shapes if spec.symmetric else shapes | {"zero_point": (shape, torch.uint8)}

    def check(self, params: Params, spec: WeightSpec) -> str | None:
        """Scales are finite and not negative, zero points are codes."""
        scale = params["scale"]
        if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
            return "scales must be finite and not negative"
        if not spec.symmetric and bool((params["zero_point"].short() >= 2**spec.bits).any()):
            return f"zero points must be below {2**spec.bits}"
        return None

    def _centred(self, codes: Tensor, params: Params, spec: WeightSpec) -> Tensor:
        """Integers q - zero_point as int16 [N, G, g]."""
        grouped = codes.unflatten(1, (params["scale"].shape[1], -1)).to(torch.int16)
        return grouped - (2 ** (spec.bits - 1) if spec.symmetric else params["zero_point"][..., None].to(torch.int16))

    def decode(self, codes: UInt8[Tensor, "N K"], params: Params, spec: WeightSpec) -> Float[Tensor, "N K"]:
        """Return scale * (code - zero_point)."""
        return (self._centred(codes, params, spec) * params["scale"][..., None]).flatten(1)

    def decode_int8(
        self, codes: UInt8[Tensor, "N K"], params: Params, spec: WeightSpec
    ) -> tuple[Int8[Tensor, "N K"], Float[Tensor, " N"]] | None:
        """Exact for one symmetric group a row, or an asymmetric one of at most 7 bits; None otherwise."""
        if params["scale"].shape[1] != 1 or (not spec.symmetric and spec.bits == 8):
            return None
        return self._centred(codes, params, spec).flatten(1).to(torch.int8), params["scale"][:, 0]

    def int8_table(self, params: Params, spec: WeightSpec) -> tuple[Int8[Tensor, "R V"], Float[Tensor, " N"]] | None:
        """One table for all rows, or with zero points one a row."""
        if params["scale"].shape[1] != 1 or (not spec.symmetric and spec.bits == 8):
            return None
        codes = torch.arange(2**spec.bits, dtype=torch.int16, device=params["scale"].device)
        zero = 2 ** (spec.bits - 1) if spec.symmetric else params["zero_point"].to(torch.int16)
        return (codes[None] - zero).to(torch.int8), params["scale"][:, 0]


FORMATS["affine"] = Affine()
