"""Round to nearest between the minimum and the maximum of every row or group, or within a clipped range."""

from jaxtyping import Float
from torch import Tensor

from ditquant.formats import PackedWeight
from ditquant.quantizers.affine_fit import fit_affine, round_affine
from ditquant.quantizers.base import DATA_FREE, QUANTIZERS, input_power, prepare
from ditquant.quantizers.gain import mend_gain
from ditquant.quantizers.options import check_values
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats


@QUANTIZERS.register("rtn")
def rtn(
    weight: Float[Tensor, "N K"],
    spec: WeightSpec,
    stats: LayerStats | None = None,
    *,
    clip: str | None = None,
    gain: bool = True,
) -> PackedWeight:
    """Quantize to format `affine`; needs no statistics.

    Symmetric: scale = max|w| / (2^(bits-1) - 1). Asymmetric: the range is extended to include zero. `clip` "mse"
    searches the part of each range with the least squared error, weighted by E[x^2] where inputs were seen, and, with
    `gain`, mends the 5 % of gain that it takes at 3 bits: without that, a clip makes a model's output worse.
    """
    check_values("rtn", {"clip": clip, "gain": gain})
    weight = prepare(weight, spec, "affine")
    shape = (spec.groups(weight.shape[1]), -1)
    grouped = weight.unflatten(1, shape)
    params = fit_affine(grouped, spec, clip, input_power(stats, weight.shape[1]).view(shape))
    packed = PackedWeight.from_codes(round_affine(grouped, params, spec).flatten(1), params, spec)
    return mend_gain(weight, packed, stats) if gain and clip is not None else packed


DATA_FREE.add("rtn")
