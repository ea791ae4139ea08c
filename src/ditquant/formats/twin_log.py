"""Format `twin_log`: a sign bit and levels that are uniform in log2(|w| + eta) (LRQ-DiT, arXiv 2508.03485, eq. of TLQ).

With n = 2^(bits-1) levels a sign and lo, hi of that sign,
    level_k = (lo + eta) * ((hi + eta) / (lo + eta))^(k / (n-1)) - eta,   k = 0..n-1;
code k is +level_k, code n + k is -level_k. eta is shared by both signs of a row; eta -> 0 gives logarithmic levels,
eta -> infinity uniform ones.

Differs from the paper: five numbers a row (or group), exactly 2^bits values, no implicit zero. From 5 bits on, levels
are rounded to 1/127 of the scale, so that the integer product loses nothing (at 3 and 4 bits its table costs 0.05 dB).
"""

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from ditquant.formats.base import FORMATS, Params
from ditquant.specs import WeightSpec

ETA_MIN, ETA_MAX = 2.0**-14, 65504.0  # the normal range of float16
ROUND_DOWN = 1 - 2.0**-11  # a bound times this does not round above itself in float16

INT8_BITS = 5  # from here on levels lie on the INT8 grid


class TwinLog:
    """Params: scale float32 [N, G], the largest magnitude; shape float16 [N, G, 4], relative to it.

    `shape` holds eta, lo of the positive and of the negative levels, and skew = hi_positive - hi_negative, of which
    the larger one is 1.
    """

    def param_shapes(
        self, spec: WeightSpec, rows: int, in_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of the parameters."""
        groups = spec.groups(in_features)
        return {"scale": ((rows, groups), torch.float32), "shape": ((rows, groups, 4), torch.float16)}

    def check(self, params: Params, spec: WeightSpec) -> str | None:
        """Every level is finite and levels do not fall."""
        scale, (eta, lo, hi) = params["scale"], unfold_shape(params["shape"])
        if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
            return "scales must be finite and not negative"
        if not bool(((eta >= ETA_MIN) & (eta <= ETA_MAX)).all()):
            return f"eta must lie between {ETA_MIN:.1e} and {ETA_MAX:.0f}"
        if not bool(((lo >= 0) & (lo <= hi) & (hi <= 1)).all()):
            return "levels must satisfy 0 <= lo <= hi <= 1"
        return None

    def decode(self, codes: UInt8[Tensor, "N K"], params: Params, spec: WeightSpec) -> Float[Tensor, "N K"]:
        """Look every code up in its row's (or group's) code book."""
        table = codebook(params, spec.bits).flatten(0, 1)
        grouped = codes.reshape(table.shape[0], -1)
        return _look_up(table, grouped).view(codes.shape)

    def decode_int8(
        self, codes: UInt8[Tensor, "N K"], params: Params, spec: WeightSpec
    ) -> tuple[Int8[Tensor, "N K"], Float[Tensor, " N"]] | None:
        """Look every code up in `int8_table`; None with groups."""
        found = self.int8_table(params, spec)
        return None if found is None else (_look_up(found[0], codes), found[1])

    def int8_table(self, params: Params, spec: WeightSpec) -> tuple[Int8[Tensor, "R V"], Float[Tensor, " N"]] | None:
        """Round each row's code book to INT8 (under 0.05 dB at 3 and 4 bits); None with groups."""
        if params["scale"].shape[1] != 1:
            return None
        relative = signed_levels(params["shape"], spec.bits)[:, 0]
        steps = int8_steps(relative) if spec.bits < INT8_BITS else torch.full_like(relative[:, 0], 127)
        return torch.round(relative * steps[:, None]).to(torch.int8), params["scale"][:, 0] / steps


def _look_up(table: Tensor, codes: Tensor) -> Tensor:
    """table[R, V] indexed by codes [R, k] below V."""
    offsets = torch.arange(table.shape[0], dtype=torch.int32, device=codes.device)[:, None] * table.shape[1]
    return table.flatten().index_select(0, (codes + offsets).flatten()).view(codes.shape)


def unfold_shape(shape: Float[Tensor, "*R 4"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return eta [*R, 1], and lo and hi [*R, 2] of the positive and the negative side, in float32."""
    eta, lo, skew = shape.float().split((1, 2, 1), dim=-1)
    hi = torch.cat((1 + skew, 1 - skew), -1).clamp(max=1)
    return eta, lo, hi


def levels(eta: Float[Tensor, "*#R"], lo: Float[Tensor, "*#R"], hi: Float[Tensor, "*#R"], bits: int) -> Tensor:
    """Return the 2^(bits-1) magnitudes [*R, n] of one sign, rising from lo to hi.

    expm1 and log1p keep them exact where eta is large and never below lo.
    """
    n = 2 ** (bits - 1)
    t = torch.linspace(0, 1, n, dtype=lo.dtype, device=lo.device)
    base = (lo + eta)[..., None]
    return lo[..., None] + base * torch.expm1(t * torch.log1p((hi - lo)[..., None] / base))


def int8_steps(relative: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Return the number of steps up to the scale, 96 to 127, at which rounding the levels to integers costs least.

    A level's share of the weights is taken as 1 / distance^2, the law of a code book of least error, whose levels are
    spaced by the cube root of the density.
    """
    magnitudes = relative.abs().unflatten(1, (2, -1))
    share = 1 / magnitudes.diff(dim=-1).clamp(min=1e-4).square()
    share = torch.cat((share[..., :1], share), -1).flatten(1)
    errors = []
    for steps in range(96, 128):  # one at a time: all at once would leave the cache
        at = relative * steps
        errors.append((at.round() - at).div_(steps).square_().mul_(share).sum(-1))
    return (96 + torch.stack(errors, -1).argmin(-1)).to(relative.dtype)


def round_int8(relative: Tensor) -> Tensor:
    """Round values relative to the scale to the INT8 grid."""
    return torch.round(relative * 127) / 127


def signed_levels(shape: Float[Tensor, "*R 4"], bits: int) -> Float[Tensor, "*R V"]:
    """Return the 2^bits values by code, relative to the scale."""
    eta, lo, hi = unfold_shape(shape)
    both = levels(eta, lo, hi, bits)
    if bits >= INT8_BITS:
        both = round_int8(both)
    return torch.cat((both[..., 0, :], -both[..., 1, :]), -1)


def codebook(params: Params, bits: int) -> Float[Tensor, "N G V"]:
    """Return the 2^bits values of every row and group, by code."""
    return signed_levels(params["shape"], bits) * params["scale"][..., None]


FORMATS["twin_log"] = TwinLog()
