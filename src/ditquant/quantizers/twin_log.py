"""Twin-Log quantization (LRQ-DiT, arXiv 2508.03485): fit each row's code book, take the nearest level, mend the gain.

Differs from the paper: the five numbers of a row are fitted to that row's squared error, weighted by E[x^2] where
inputs were seen; levels are assigned by distance, not by exponent; the row is scaled so that quantization does not
shrink it. `search="paper"` keeps the paper's grid of clipping percentiles and eta, one choice for the whole matrix.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditquant.formats import PackedWeight
from ditquant.formats.twin_log import ETA_MAX, ETA_MIN, ROUND_DOWN, codebook, signed_levels
from ditquant.quantizers.base import QUANTIZERS, prepare
from ditquant.quantizers.twin_log_fit import fit_shapes
from ditquant.registry import Registry
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats


@QUANTIZERS.register("twin_log")
def twin_log(
    weight: Float[Tensor, "N K"],
    spec: WeightSpec,
    stats: LayerStats | None = None,
    *,
    search: str = "fit",
    gain: bool = True,
) -> PackedWeight:
    """Quantize to format `twin_log`.

    With `stats` the fit is weighted by E[x^2] and the gain is corrected in the metric of the sampled inputs; without,
    both are plain. `search` is "fit" or "paper", which has no gain correction. `gain=False` leaves the fit as it is:
    of less weight error by 10 log10(1/(1-D)) dB where D is the relative error, and of worse pictures.
    """
    weight = prepare(weight, spec, "twin_log")
    groups = spec.groups(weight.shape[1])
    error_weight = torch.ones(1, weight.shape[1]) if stats is None else stats.mean_square[None].clamp(min=1e-12)
    scale, shape = SEARCHES[search](weight, error_weight, spec.bits, groups)
    params = {"scale": scale.view(-1, groups), "shape": shape.view(-1, groups, 4)}
    codes = nearest(weight, params, spec.bits)
    if gain and search != "paper":
        factor = output_gain(weight, PackedWeight.from_codes(codes, params, spec), stats)
        params["scale"] = params["scale"] * factor[:, None]
    return PackedWeight.from_codes(codes, params, spec)


def nearest(weight: Float[Tensor, "N K"], params: dict[str, Tensor], bits: int) -> UInt8[Tensor, "N K"]:
    """Return the code of the nearest level that has the weight's sign."""
    n = 2 ** (bits - 1)
    positive, negative = codebook(params, bits).flatten(0, 1).split(n, dim=1)
    values = torch.cat((negative.flip(1), positive), 1)
    cuts = (values[:, 1:] + values[:, :-1]) / 2
    cuts[:, n - 1] = 0
    place = torch.searchsorted(cuts, weight.reshape(len(cuts), -1), right=True, out_int32=True)
    return torch.where(place >= n, place - n, 2 * n - 1 - place).to(torch.uint8).view(weight.shape)


def output_gain(weight: Float[Tensor, "N K"], packed: PackedWeight, stats: LayerStats | None) -> Float[Tensor, " N"]:
    """Return <w,w> / <q,w> of every row, in the metric of the inputs where a sample of them is at hand.

    Kept within a factor of two: a row whose output is all noise has no gain to correct.
    """
    size = packed.params["scale"].amax(1, keepdim=True).clamp(min=1e-38)  # squares stay within the range of float32
    weight, quantized = weight / size, packed.dequantize() / size
    if stats is not None and len(stats.sample):
        weight, quantized = weight @ stats.sample.T, quantized @ stats.sample.T
    power, overlap = weight.square().sum(1), (weight * quantized).sum(1)
    usable = (overlap > 0) & (power > 0)
    return torch.where(usable, power / torch.where(usable, overlap, 1), 1).clamp(0.5, 2)


def _search_fit(weight: Tensor, error_weight: Tensor, bits: int, groups: int) -> tuple[Tensor, Tensor]:
    if groups > 1:
        error_weight = error_weight.expand_as(weight).reshape(len(weight) * groups, -1)
    return fit_shapes(weight.reshape(len(weight) * groups, -1), error_weight, bits)


PERCENTILES = (0.98, 0.99, 0.999, 0.9999, 0.99999)
ETAS = (0.0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def _search_paper(weight: Tensor, error_weight: Tensor, bits: int, groups: int) -> tuple[Tensor, Tensor]:
    """Least plain squared error over the paper's grid; weights of the other sign take no part in the statistics."""
    rows = weight.reshape(len(weight) * groups, -1)
    sides = [torch.where(rows * sign > 0, rows * sign, torch.nan) for sign in (1, -1)]
    low = [s.nan_to_num(torch.inf).amin(1) for s in sides]
    high = [_percentiles(s) for s in sides]
    best, chosen = torch.inf, None
    for eta in ETAS:
        for a, b in [(a, b) for a in range(len(PERCENTILES)) for b in range(len(PERCENTILES))]:
            params = _paper_params(eta, low, [high[0][a], high[1][b]])
            values = signed_levels(params[1], bits) * params[0][:, None]
            codes = nearest(rows, {"scale": params[0][:, None], "shape": params[1][:, None]}, bits)
            error = float((rows - values.gather(1, codes.long())).double().square().sum())
            if error < best:
                best, chosen = error, params
    return chosen


def _percentiles(rows: Tensor) -> Tensor:
    """Of every row without its NaN entries; in pieces, since torch limits the size of a quantile's input."""
    pieces = rows.split(max(1, (1 << 23) // rows.shape[1]))
    return torch.cat([p.nanquantile(torch.tensor(PERCENTILES), dim=1) for p in pieces], 1).nan_to_num(0)


def _paper_params(eta: float, low: list[Tensor], high: list[Tensor]) -> tuple[Tensor, Tensor]:
    scale = torch.maximum(*high)
    safe = torch.where(scale > 0, scale, 1)
    hi = torch.stack(high, 1) / safe[:, None]
    skew = (hi[:, :1] - hi[:, 1:]).half().float()
    limit = torch.cat((1 + skew, 1 - skew), 1).clamp(max=1)
    lo = torch.minimum(torch.stack(low, 1) / safe[:, None], limit * ROUND_DOWN)
    return scale, torch.cat(((eta / safe[:, None]).clamp(ETA_MIN, ETA_MAX), lo, skew), 1).half()


SEARCHES = Registry("twin_log search")
SEARCHES.update(fit=_search_fit, paper=_search_paper)
