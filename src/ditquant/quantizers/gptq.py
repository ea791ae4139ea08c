"""GPTQ (arXiv 2210.17323): round column by column, and let the columns to come make good each rounding's error.

With H = E[x xᵀ] + damping and H⁻¹ = Uᵀ U, U upper triangular, the error e_k = w_k - q_k of column k is taken back by
    w_j -= e_k U_kj / U_kk,   j > k,
the change of the remaining columns that minimizes e H eᵀ. Columns behind a block get its errors at its end.

Differs from the paper: U comes from one Cholesky factor of H, read backwards, without H⁻¹; with groups a column order
keeps each group together; codes may be those of any format that can round one column (see `gptq_rounding`); fits are
weighted by the cost R_kk^2 = 1 / U_kk^2 of each column's error, which the paper's uniform grid does not need (0.1 to
0.4 dB better than E[x^2] on correlated inputs); and what is left of the gain's loss is mended.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditquant.errors import DitQuantError
from ditquant.formats import PackedWeight
from ditquant.quantizers.base import NEEDS_GRAM, QUANTIZERS, prepare
from ditquant.quantizers.gain import mend_gain
from ditquant.quantizers.gptq_factor import Factor, choose_factor
from ditquant.quantizers.gptq_joint import round_jointly
from ditquant.quantizers.gptq_rounding import ROUNDINGS, Rounding
from ditquant.quantizers.options import check_values
from ditquant.quantizers.rtn import rtn
from ditquant.quantizers.twin_log import twin_log
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats


@QUANTIZERS.register("gptq")
def gptq(
    weight: Float[Tensor, "N K"],
    spec: WeightSpec,
    stats: LayerStats | None = None,
    *,
    damping: float = 0.01,
    order: str = "best",
    block_size: int = 128,
    clip: str | None = None,
    gain: bool = True,
    joint: bool = False,
) -> PackedWeight:
    """Quantize to format `affine` or `twin_log`; `stats` need a Gram.

    `damping` times the mean of the Gram's diagonal is added to it. `order` "natural" takes columns as they stand,
    "activation" the groups with the strongest inputs first, and in each the strongest channels; "best" the one of them
    that foresees less error. `clip` is that of `rtn`, and for `affine` only. Without statistics, or of a layer that no
    input ever reached, the weight is rounded as `rtn` or `twin_log` do it.

    `gain` scales each row so that <q,w> = <w,w> in the metric of the Gram. Compensation leaves little to mend, 0.4 to
    0.9 % of the output at 3 bits, and the layer's own error stays as it is (0.02 dB). But a loss of gain adds up over
    layers as noise does not: of the shipped model at 3 bits the whole output gains 0.4 to 0.6 dB.

    `joint` lets the rows to come take back an error too, in the metric of what the model predicts (see `gptq_joint`);
    without groups, and where the statistics hold the outputs' curvature.

    Raises:
        DitQuantError: statistics without a Gram, of another width, or not finite; a damping too small for them.
    """
    options = {"damping": damping, "order": order, "block_size": block_size, "clip": clip, "gain": gain, "joint": joint}
    check_values("gptq", options)
    weight = prepare(weight, spec, spec.format)
    make_rounding = ROUNDINGS[spec.format]
    if clip is not None and spec.format != "affine":
        raise DitQuantError(f"clip {clip!r} is for format 'affine', the spec asks for {spec.format!r}. Leave it out.")
    if joint and spec.group_size is not None:
        raise DitQuantError(
            f"joint rounding is for weights without groups, the spec has groups of {spec.group_size}. Leave one out."
        )
    if stats is None or stats.count == 0:
        return (
            twin_log(weight, spec, gain=gain) if spec.format == "twin_log" else rtn(weight, spec, clip=clip, gain=gain)
        )
    factor = choose_factor(_need_gram(stats, weight), spec.group_size or weight.shape[1], order, damping)
    rounding = make_rounding(weight, spec, factor.error_weight(), clip)
    if joint and stats.curvature is not None:
        outputs = choose_factor(stats.curvature, len(weight), order, damping)
        codes = round_jointly(weight, factor, outputs, rounding)
    else:
        codes = _compensate(weight, factor, spec.group_size or weight.shape[1], block_size, rounding)
    packed = PackedWeight.from_codes(codes, rounding.params, spec)
    return mend_gain(weight, packed, stats) if gain else packed


NEEDS_GRAM.add("gptq")


def _compensate(
    weight: Float[Tensor, "N K"], factor: Factor, width: int, block_size: int, rounding: Rounding
) -> UInt8[Tensor, "N K"]:
    channels, share = factor.channels, factor.share()
    columns = weight.T[channels]  # a copy, with each column's weights side by side
    codes = torch.empty(columns.shape, dtype=torch.uint8)
    for start, end in _blocks(len(columns), width, block_size):
        errors = torch.empty_like(columns[start:end])
        for k in range(start, end):
            if k % width == 0:
                group = channels[k : k + width]
                rounding.enter(int(group[0]) // width, columns[k : k + width][group.argsort()])
            codes[channels[k]], rounded = rounding.round(columns[k])
            errors[k - start] = columns[k] - rounded
            columns[k + 1 : end].addcmul_(share[k, k + 1 : end, None], errors[k - start], value=-1)
        columns[end:].addmm_(share[start:end, end:].T, errors, alpha=-1)
    return codes.T.contiguous()


def _blocks(columns: int, width: int, block_size: int) -> list[tuple[int, int]]:
    """Cut columns so that no group is entered before its columns have taken back all errors before it."""
    if width <= block_size:
        step = block_size // width * width
        return [(start, min(start + step, columns)) for start in range(0, columns, step)]
    groups = range(0, columns, width)
    return [(s, min(s + block_size, g + width)) for g in groups for s in range(g, g + width, block_size)]


def _need_gram(stats: LayerStats, weight: Float[Tensor, "N K"]) -> Float[Tensor, "K K"]:
    if len(stats.absmax) != weight.shape[1]:
        raise DitQuantError(
            f"quantizer 'gptq' got statistics of {len(stats.absmax)} channels for a weight of {weight.shape[1]}. "
            "Give the statistics of this layer's input."
        )
    gram = stats.gram
    if gram is None:
        raise DitQuantError("quantizer 'gptq' got statistics without a Gram. Collect them with gram=True.")
    if not stats.finite:
        raise DitQuantError("quantizer 'gptq' got NaN or infinite inputs. Calibrate in bfloat16 or float32.")
    return gram
