"""Adaptive rotation (LRQ-DiT, section "ARS"): a mild rotation for most layers, a salient one where outliers demand it.

Differs from the paper: J is computed where the authors typed the layers by hand, and `select="error"` decides by the
measured output error instead, since J is only an RMS.
"""

from dataclasses import asdict, dataclass

from jaxtyping import Float
from torch import Tensor

from ditquant.stats import LayerStats
from ditquant.transforms.base import Transform
from ditquant.transforms.fake_quantize import fake_quantize, sqnr_db
from ditquant.transforms.fitters import FITTERS, need_stats, register_fitter, sample_rows
from ditquant.transforms.options import check_values

KIND = "adaptive_rotation"
ERROR_TOKENS = 256
ERROR_ROWS = 1024


@dataclass(frozen=True)
class RotationReport:
    """What both ways of choosing say about one layer; SQNR of its output with weight and input quantized."""

    metric: float
    threshold: float
    by_metric: str
    by_error: str
    none_db: float
    mild_db: float
    salient_db: float


@register_fitter(KIND)
def fit_adaptive(
    weight: Float[Tensor, "N K"],
    stats: LayerStats | None = None,
    *,
    threshold: float = 1.0,
    select: str = "metric",
    salient: str = "fast_dual_rotation",
    mild: str = "hadamard",
    block: int | None = 128,
    seed: int = 0,
    weight_bits: int | None = 4,
    act_bits: int | None = 4,
) -> Transform:
    """Return the fitted mild or salient rotation; without data, the Hadamard rotation.

    `select` "metric": salient where J = RMS of the layer's own input (before smoothing) >= threshold; "error": the one
    with the smaller output error on the sample, weight and input rounded to the given bits (None: not rounded).
    """
    check_values(KIND, threshold=threshold, select=select, salient=salient, mild=mild, block=block, seed=seed)
    check_values(KIND, weight_bits=weight_bits, act_bits=act_bits)
    if stats is None:
        return FITTERS["hadamard"](weight, None, block=block, seed=seed)
    need_stats(KIND, weight, stats)
    if select == "metric":
        return FITTERS[_by_metric(stats, threshold, mild, salient)](weight, stats, block=block, seed=seed)
    fitted = [FITTERS[kind](weight, stats, block=block, seed=seed) for kind in (mild, salient)]
    return max(fitted, key=lambda transform: output_sqnr_db(weight, stats, transform, weight_bits, act_bits))


def _by_metric(stats: LayerStats, threshold: float, mild: str, salient: str) -> str:
    return salient if stats.layer_input.rms >= threshold else mild


def output_sqnr_db(
    weight: Float[Tensor, "N K"],
    stats: LayerStats,
    transform: Transform | None,
    weight_bits: int | None = 4,
    act_bits: int | None = 4,
) -> float:
    """Measure the layer's output on the sample with weight and input plainly quantized after the transform.

    Taken over at most 256 tokens and 1024 outputs.
    """
    x = sample_rows(stats, ERROR_TOKENS, weight.device)
    rows = weight[:: -(-len(weight) // ERROR_ROWS)].to(x.dtype)
    y, w = (x, rows) if transform is None else (transform(x), transform.absorb(rows))
    return sqnr_db(x @ rows.T, fake_quantize(y, act_bits) @ fake_quantize(w, weight_bits).T)


def describe(
    weight: Float[Tensor, "N K"],
    stats: LayerStats,
    *,
    threshold: float = 1.0,
    salient: str = "fast_dual_rotation",
    mild: str = "hadamard",
    block: int | None = 128,
    seed: int = 0,
    weight_bits: int | None = 4,
    act_bits: int | None = 4,
) -> dict[str, float | str]:
    """Return the fields of `RotationReport` for one layer, plain data for a report."""
    check_values(KIND, threshold=threshold, salient=salient, mild=mild, weight_bits=weight_bits, act_bits=act_bits)
    need_stats(KIND, weight, stats)
    transforms = [None, *(FITTERS[kind](weight, stats, block=block, seed=seed) for kind in (mild, salient))]
    none_db, mild_db, salient_db = (output_sqnr_db(weight, stats, t, weight_bits, act_bits) for t in transforms)
    by_error = salient if salient_db > mild_db else mild
    by_metric = _by_metric(stats, threshold, mild, salient)
    return asdict(RotationReport(stats.layer_input.rms, threshold, by_metric, by_error, none_db, mild_db, salient_db))
