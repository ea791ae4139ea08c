"""Fit the five numbers of every row: a coarse grid, then a pattern search, on a histogram of the row.

A row is binned once, in log(1 + |w| / rms), fine where weights are many and however far its outliers are. With prefix
sums of h and h*w over the bins (h the error weight) the squared error of any code book whose thresholds are rounded to
bin edges is exact, up to a constant. So a candidate costs some lookups and not a pass over the row.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.formats.twin_log import ETA_MAX, ETA_MIN, INT8_BITS, ROUND_DOWN, levels, round_int8

CHUNK = 1 << 18  # weights searched at a time: their sums stay in cache
ETA_STARTS = (0.1, 0.6, 4.0)  # times the RMS of the row
LO_STARTS = (0.05, 0.2)
HI_STARTS = 5  # geometric from 1.4 RMS to the maximum
UNIFORM_STARTS = 64  # the same at 8 bits, where the INT8 grid has no finer levels than uniform ones
STEPS = (1.25, 1.25, 1.12, 1.06, 1.03)
BINS = (512, 2048)  # of each sign, up to 4 bits and from 5 bits on


def fit_shapes(
    weight: Float[Tensor, "R K"], error_weight: Float[Tensor, "#R K"], bits: int
) -> tuple[Float[Tensor, " R"], Float[Tensor, "R 4"]]:
    """Return scale [R] and shape [R, 4] (see format `twin_log`) of least weighted squared error."""
    rows = max(1, CHUNK // weight.shape[1])
    parts = [
        _fit_chunk(weight[i : i + rows], error_weight[i : i + rows] if len(error_weight) > 1 else error_weight, bits)
        for i in range(0, len(weight), rows)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


class _Errors:
    """Rows as histograms; `of` gives each sign's squared error of code books, up to a constant."""

    def __init__(self, weight: Tensor, error_weight: Tensor, bits: int):
        self.bins = BINS[bits > 4]  # of each sign
        h = error_weight.expand_as(weight)
        self.rms = (h * weight**2).sum(1).div(h.sum(1).clamp(min=1e-30)).sqrt()
        self._unit = self.rms.clamp(min=1e-6)[:, None]
        self._per_log = self.bins / torch.log1p(weight.abs().amax(1, keepdim=True) / self._unit).clamp(min=1e-6)
        bins = self._edge(weight).floor_().clamp_(0, 2 * self.bins - 1).long()
        empty = torch.zeros(len(weight), 2 * self.bins + 1, dtype=torch.float64)
        self._sums = [
            empty.scatter_add(1, bins + 1, s.double()).cumsum(1).float() for s in (h.contiguous(), h * weight)
        ]

    def _edge(self, x: Tensor) -> Tensor:
        """Place of values [R, M] on the axis of the bins, which zero divides in halves."""
        return torch.log1p(x.abs() / self._unit).mul_(self._per_log).copysign_(x).add_(self.bins)

    def of(self, magnitudes: Float[Tensor, "R C 2 n"]) -> Float[Tensor, "R C 2"]:
        """Errors of the positive and of the negative weights with their levels (second last axis)."""
        positive, negative = magnitudes.unbind(2)
        values = torch.cat((-negative.flip(-1), positive), -1)
        cuts = (values[..., 1:] + values[..., :-1]) / 2
        cuts[..., positive.shape[-1] - 1] = 0  # no weight changes its sign
        where = self._edge(cuts.flatten(1)).round_().clamp_(0, 2 * self.bins).long().view(cuts.shape)
        count, first = (self._between(s, where) for s in self._sums)
        error = values * (values * count - 2 * first)
        negative_error, positive_error = error.unflatten(-1, (2, -1)).sum(-1).unbind(-1)
        return torch.stack((positive_error, negative_error), -1)

    @staticmethod
    def _between(sums: Tensor, where: Tensor) -> Tensor:
        inner = sums.gather(1, where.flatten(1)).view(where.shape)
        ends = sums[:, [0, -1]].unsqueeze(1).expand(-1, where.shape[1], -1)
        return torch.cat((ends[..., :1], inner, ends[..., 1:]), -1).diff(dim=-1)


def _fit_chunk(weight: Tensor, error_weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(1)
    errors = _Errors(weight / torch.where(scale > 0, scale, 1)[:, None], error_weight, bits)
    best = _grid(errors, bits)
    for step in STEPS if bits <= 4 else STEPS[-2:] if bits < 8 else ():
        best = _pattern(errors, bits, *best, step)
    return _to_params(scale, *best)


def _grid(errors: _Errors, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Best of a grid relative to the row's RMS and maximum: eta [R, 1], lo and hi [R, 2]."""
    rms = errors.rms.clamp(min=1e-6)[:, None]
    low = (1.4 * rms).clamp(max=1)
    hi = low * (1 / low) ** torch.linspace(0, 1, HI_STARTS if bits < 8 else UNIFORM_STARTS)
    both = hi[..., None].expand(-1, -1, 2)
    found = [_best_of(errors, bits, torch.full_like(rms, ETA_MAX), both * 0, both)]  # uniform
    if bits < 8:
        lo = (rms * torch.tensor(LO_STARTS)).clamp(max=0.3)
        pairs = torch.broadcast_tensors(lo[:, None], hi[:, :, None])
        lo, hi = (a.flatten(1)[..., None].expand(-1, -1, 2) for a in pairs)
        found += [_best_of(errors, bits, rms * eta, lo, hi) for eta in ETA_STARTS]
    return _best_eta(found)


def _pattern(
    errors: _Errors, bits: int, eta: Tensor, lo: Tensor, hi: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Best of the neighbours in a factor `step` of hi and its powers for eta and lo."""
    factors = step ** torch.tensor([-1.0, 0.0, 1.0])
    near_hi = (hi[:, None] * factors[:, None]).clamp(max=1)
    near_lo = torch.minimum(lo[:, None] * factors[:, None] ** 2, hi[:, None])
    near_hi = near_hi[:, :, None].expand(-1, -1, 3, -1).flatten(1, 2)
    near_lo = near_lo[:, None].expand(-1, 3, -1, -1).flatten(1, 2)
    found = [_best_of(errors, bits, eta * float(f) ** 2, torch.minimum(near_lo, near_hi), near_hi) for f in factors]
    return _best_eta(found)


def _best_of(errors: _Errors, bits: int, eta: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, ...]:
    """For eta [R, 1], the best of the candidates lo, hi [R, C, 2] for each sign, and the error [R] of both."""
    eta = eta.clamp(ETA_MIN, ETA_MAX)
    magnitudes = levels(eta[:, None], lo, hi, bits)
    if bits < INT8_BITS:
        error = errors.of(magnitudes)
    else:  # both signs share lo and hi, so that one INT8 grid serves both
        top = hi[..., None]
        error = errors.of(round_int8(magnitudes / top) * top).sum(-1, keepdim=True).expand(-1, -1, 2)
    least, chosen = error.min(1, keepdim=True)
    return eta, lo.gather(1, chosen)[:, 0], hi.gather(1, chosen)[:, 0], least.sum((1, 2))


def _best_eta(found: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    chosen = torch.stack([f[3] for f in found]).argmin(0)
    rows = torch.arange(len(chosen))
    eta, lo, hi = (torch.stack([f[i] for f in found])[chosen, rows] for i in range(3))
    return eta, lo, hi


def _to_params(scale: Tensor, eta: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Relative to the larger hi, rounded to what is stored."""
    largest = hi.amax(1, keepdim=True)
    eta, lo, hi = eta / largest, lo / largest, hi / largest
    skew = (hi[:, :1] - hi[:, 1:]).half().float()
    lo = torch.minimum(lo, torch.cat((1 + skew, 1 - skew), 1).clamp(max=1) * ROUND_DOWN)
    shape = torch.cat((eta.clamp(ETA_MIN, ETA_MAX), lo, skew), 1)
    return scale * largest[:, 0], shape.half()
