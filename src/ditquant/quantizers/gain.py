"""Mend the gain: codes of least error shrink a weight, which adds up over layers and steps as noise does not."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.formats import PackedWeight
from ditquant.stats import LayerStats


def mend_gain(weight: Float[Tensor, "N K"], packed: PackedWeight, stats: LayerStats | None) -> PackedWeight:
    """Scale every row of a quantized weight so that <q,w> = <w,w>."""
    scale = packed.params["scale"] * output_gain(weight, packed, stats)[:, None]
    return replace(packed, params={**packed.params, "scale": scale})


def output_gain(weight: Float[Tensor, "N K"], packed: PackedWeight, stats: LayerStats | None) -> Float[Tensor, " N"]:
    """Return <w,w> / <q,w> of every row, in the metric of the inputs: of their Gram, or else of a sample of them.

    Kept within a factor of two: a row whose output is all noise has no gain to correct.
    """
    size = packed.params["scale"].amax(1, keepdim=True).clamp(min=1e-38)  # squares stay within the range of float32
    weight, quantized = weight / size, packed.dequantize() / size
    gram = None if stats is None else stats.gram
    if gram is not None:
        measured = weight @ gram
    elif stats is not None and len(stats.sample):
        sample = stats.sample.T.double()  # in float32 the last bits would depend on the number of threads
        measured = weight = weight.double() @ sample
        quantized = quantized.double() @ sample
    else:
        measured = weight
    power, overlap = (weight * measured).sum(1), (quantized * measured).sum(1)
    usable = (overlap > 0) & (power > 0)
    return torch.where(usable, power / torch.where(usable, overlap, 1), 1).clamp(0.5, 2).float()
