"""How far a model is above another one, prompt by prompt: what both share, such as hard prompts, does not blur it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ditquant.evaluation.intervals import paired_interval

if TYPE_CHECKING:
    from ditquant.evaluation.results import ModelResult

_MEANS = ("clip_score", "step_sqnr_db")  # scores, and decibels that no single sample rules
_SHARES = ("caption_accuracy",)


@dataclass(frozen=True)
class Difference:
    """`metric` of `model` less that of `other`, and the 95 % interval; NaN where it is not known."""

    model: str
    other: str
    metric: str
    value: float
    low: float
    high: float


def statistic_of(metric: str) -> str:
    """Say which statistic over the prompts stands for a metric: "mean", "median", or "share", a mean of 0 and 1."""
    return "share" if metric in _SHARES else "mean" if metric in _MEANS else "median"


def figure(metric: str, values: Sequence[float]) -> float:
    """Return the statistic that stands for a metric."""
    return statistics.median(values) if statistic_of(metric) == "median" else sum(values) / len(values)


def differences(models: Sequence[ModelResult]) -> list[Difference]:
    """Compare every model with the reference, in what pictures have by themselves, and with the first other model.

    The first one, and not the best: the best of several is also the luckiest.
    """
    reference, *others = models
    return [
        found
        for i, model in enumerate(others)
        for other in (reference, *others[: min(i, 1)])
        for found in _between(model, other)
    ]


def _between(model: ModelResult, other: ModelResult) -> list[Difference]:
    common = [m for m in model.values if len(other.values.get(m, ())) == len(model.values[m]) > 0]
    return [_difference(metric, model, other) for metric in common]


def _difference(metric: str, model: ModelResult, other: ModelResult) -> Difference:
    values, theirs = model.values[metric], other.values[metric]
    value = figure(metric, values) - figure(metric, theirs)
    low, high = paired_interval(values, theirs, statistic_of(metric)) if math.isfinite(value) else (math.nan, math.nan)
    return Difference(model.name, other.name, metric, value, low, high)
