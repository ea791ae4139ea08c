"""How long a layer takes to be fitted: what a rule does to it, at costs that were measured on one core.

The costs are those of one thread of a server of 2023 in seconds; a run says what is left in its own measure as soon as
its first block is done.
"""

from collections.abc import Sequence

from ditquant.quantizers import NEEDS_GRAM, reads_curvature
from ditquant.rule import Rule
from ditquant.specs import TransformSpec

READ_WEIGHT = 1.2e-8  # round a weight to nearest, and pack it
SEARCH_CLIP = 1.2e-7  # a weight
FIT_ROW, FIT_WEIGHT = 6e-5, 1.4e-7  # a Twin-Log code book
COLUMN, COMPENSATE = 1.2e-4, 6e-8  # a column of GPTQ, and a weight
FACTOR = 1.1e-10  # of a Gram: a cubed channel
ANTIDIAGONALS = 3.2e-6  # a weight that is compensated over outputs too
SPLIT = 2e-8  # a weight, once into a low-rank part and a rest
REFIT = 1.5e-10  # the metric's roots and products, a weight and a channel
ROTATE = {"dual_rotation": (0.2, 6e-4), "fast_dual_rotation": (0.04, 3e-5), "adaptive_rotation": (0.04, 3e-5)}
TRIAL_ROWS, TURNS = 64, 6  # as in `fitting` and `low_rank`


def fit_seconds(rule: Rule, out_features: int, in_features: int, data: bool = True) -> float:
    """Return about how long `fit_layer` takes on one core; `data` says whether there are statistics."""
    if rule.weight is None:
        return 0.0
    chains = rule.chains if data else rule.chains[:1]
    seconds = sum(_transforms(chain, in_features) for chain in chains)
    if len(chains) > 1:
        rows = min(TRIAL_ROWS, out_features)
        seconds += len(chains) * _quantize(rule, rows, in_features, data, joint=False, turns=1)
    return seconds + _quantize(rule, out_features, in_features, data, joint=data, turns=TURNS)


def _transforms(chain: Sequence[TransformSpec], in_features: int) -> float:
    costs = [ROTATE.get(spec.kind, (0.001, 2e-6)) for spec in chain]
    return sum(once + channel * in_features for once, channel in costs)


def _quantize(rule: Rule, rows: int, columns: int, data: bool, joint: bool, turns: int) -> float:
    compensated = data and rule.quantizer in NEEDS_GRAM
    seconds = _round(rule, rows, columns)
    if compensated:
        seconds += columns * COLUMN + columns**3 * FACTOR + rows * columns * COMPENSATE
    if joint and reads_curvature(rule.quantizer_options):
        seconds += rows * columns * ANTIDIAGONALS + rows**3 * FACTOR
    if rule.rank:
        seconds += turns * (rows * columns * SPLIT + _round(rule, rows, columns))
        seconds += compensated * rows * columns * (rows + columns) * REFIT
    return seconds


def _round(rule: Rule, rows: int, columns: int) -> float:
    weights = rows * columns
    if rule.weight is not None and rule.weight.format == "twin_log":
        return rows * FIT_ROW + weights * FIT_WEIGHT
    return weights * (SEARCH_CLIP if rule.quantizer_options.get("clip") else READ_WEIGHT)
