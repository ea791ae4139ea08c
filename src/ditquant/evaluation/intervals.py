"""Bootstrap confidence intervals over prompts (Efron 1979, percentile method)."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


def interval(values: Sequence[float], statistic: str = "mean") -> tuple[float, float]:
    """Return the interval of a mean or median; the prompts drawn are the same for every model and metric."""
    draws = _statistic(np.asarray(values, np.float64)[_indices(len(values))], statistic)
    return _ends(draws)


def paired_interval(values: Sequence[float], others: Sequence[float], statistic: str = "mean") -> tuple[float, float]:
    """Return the interval of how far a statistic of `values` is above that of `others`, drawing prompts in pairs."""
    chosen = _indices(len(values))
    first, second = (_statistic(np.asarray(v, np.float64)[chosen], statistic) for v in (values, others))
    return _ends(first - second)


def _indices(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def _statistic(draws: np.ndarray, statistic: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is seen by `_ends`
        return {"mean": np.mean, "median": np.median}[statistic](draws, axis=1)


def _ends(draws: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(draws).all():
        return math.nan, math.nan  # of a perfect model's infinite decibels nothing can be said
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
