"""The fit of `twin_log` before its gain is corrected."""

import torch

from ditquant.formats import PackedWeight
from ditquant.quantizers.twin_log import SEARCHES, nearest
from ditquant.specs import WeightSpec


def fitted(weight: torch.Tensor, bits: int, error_weight: torch.Tensor | None = None) -> PackedWeight:
    """Return rows on their fitted code books."""
    error_weight = torch.ones(1, weight.shape[1]) if error_weight is None else error_weight
    scale, shape = SEARCHES["fit"](weight, error_weight, bits, 1)
    params = {"scale": scale[:, None], "shape": shape[:, None]}
    return PackedWeight.from_codes(nearest(weight, params, bits), params, WeightSpec(bits, "twin_log"))
