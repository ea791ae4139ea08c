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
from ditquant.quantizers.base import QUANTIZERS, input_power, prepare
from ditquant.quantizers.gain import mend_gain
from ditquant.quantizers.options import check_values
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
    check_values("twin_log", {"gain": gain})
    weight = prepare(weight, spec, "twin_log")
    params = fit_twin_log(weight, spec, input_power(stats, weight.shape[1]), search)
    codes = nearest(weight, params, spec.bits)
    packed = PackedWeight.from_codes(codes, params, spec)
    return mend_gain(weight, packed, stats) if gain and search != "paper" else packed


def fit_twin_log(
    weight: Float[Tensor, "N K"], spec: WeightSpec, error_weight: Float[Tensor, " K"], search: str = "fit"
) -> dict[str, Tensor]:
    """Return the parameters of least error, weighted by input channel."""
    groups = spec.groups(weight.shape[1])
    scale, shape = SEARCHES[search](weight, error_weight[None], spec.bits, groups)
    return {"scale": scale.view(-1, groups), "shape": shape.view(-1, groups, 4)}


def nearest(weight: Float[Tensor, "N K"], params: dict[str, Tensor], bits: int) -> UInt8[Tensor, "N K"]:
    """Return the code of the nearest level that has the weight's sign."""
    cuts = thresholds(codebook(params, bits).flatten(0, 1))
    return place(weight.reshape(len(cuts), -1), cuts).view(weight.shape)


def thresholds(values: Float[Tensor, "R V"]) -> Float[Tensor, "R V-1"]:
    """Return where one code's weights end and the next one's begin, rising; zero divides the signs."""
    n = values.shape[1] // 2
    rising = torch.cat((values[:, n:].flip(1), values[:, :n]), 1)
    cuts = (rising[:, 1:] + rising[:, :-1]) / 2
    cuts[:, n - 1] = 0
    return cuts


def place(weight: Float[Tensor, "R k"], cuts: Float[Tensor, "R V-1"]) -> UInt8[Tensor, "R k"]:
    """Return the codes of weights between the thresholds of their rows."""
    n = (cuts.shape[1] + 1) // 2
    at = torch.searchsorted(cuts, weight, right=True, out_int32=True)
    return torch.where(at >= n, at - n, 2 * n - 1 - at).to(torch.uint8)


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
