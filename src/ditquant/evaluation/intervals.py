"""95 % confidence intervals over prompts: percentile bootstrap (Efron 1979), and score intervals for shares.

A bootstrap of shares that are all right or all wrong would be sure of them: shares have Wilson's interval (1927), and
differences of paired shares that of Agresti and Min (2005), Wald's after half a case is added to each of four cells.
"""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
LEAST = 2  # of a single prompt nothing is known about others
Z = 1.959963984540054  # quantile of the normal distribution at (1 + LEVEL) / 2
UNKNOWN = (math.nan, math.nan)


def interval(values: Sequence[float], statistic: str = "mean") -> tuple[float, float]:
    """Return the interval of a "mean", "median" or "share"; the prompts drawn are equal for all models and metrics.

    NaN for fewer than two values, and where some are infinite.
    """
    if len(values) < LEAST:
        return UNKNOWN
    if statistic == "share":
        return _wilson(values)
    return _ends(_statistic(np.asarray(values, np.float64)[_indices(len(values))], statistic))


def paired_interval(values: Sequence[float], others: Sequence[float], statistic: str = "mean") -> tuple[float, float]:
    """Return the interval of how far a statistic of `values` is above that of `others`, drawing prompts in pairs.

    NaN where `interval` is NaN.
    """
    if len(values) < LEAST:
        return UNKNOWN
    if statistic == "share":
        return _agresti_min(values, others)
    chosen = _indices(len(values))
    first, second = (_statistic(np.asarray(v, np.float64)[chosen], statistic) for v in (values, others))
    with np.errstate(invalid="ignore", over="ignore"):
        return _ends(first - second)


def _wilson(values: Sequence[float]) -> tuple[float, float]:
    if not set(values) <= {0, 1}:
        return UNKNOWN
    count, share = len(values), sum(values) / len(values)
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _agresti_min(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    count = len(values) + 2
    gained, lost = np.greater(values, others).sum() + 0.5, np.less(values, others).sum() + 0.5
    middle = (gained - lost) / count
    half = Z * math.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
    return max(-1.0, float(middle - half)), min(1.0, float(middle + half))


def _indices(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def _statistic(draws: np.ndarray, statistic: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is seen by `_ends`
        return {"mean": np.mean, "median": np.median}[statistic](draws, axis=1)


def _ends(draws: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(draws).all():
        return UNKNOWN  # of a perfect model's infinite decibels nothing can be said
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
