"""Go or no-go: does every model meet the thresholds that were asked for?"""

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ditquant.errors import DitQuantError
from ditquant.evaluation.metrics.distributions import FID_SAMPLES, KID_SAMPLES
from ditquant.evaluation.results import ModelResult, Results, statistic_of
from ditquant.evaluation.table import SETS, measures
from ditquant.registry import unknown

_SIGNS = {">=": operator.ge, "<=": operator.le}
_RULE = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([-+0-9.eE]+)\s*")


@dataclass(frozen=True)
class Threshold:
    """`metric` sign `bound`, such as `step_sqnr_db >= 20`."""

    metric: str
    sign: str
    bound: float

    @staticmethod
    def parse(text: str) -> "Threshold":
        """Read a threshold as it is typed.

        Raises:
            DitQuantError: anything but a known metric, >= or <=, and a number.
        """
        found = _RULE.fullmatch(text)
        try:
            threshold = Threshold(found[1], found[2], float(found[3]))
        except (TypeError, ValueError):
            raise DitQuantError(
                f"{text!r} is no threshold. Write a metric, >= or <=, and a number: 'step_sqnr_db>=20'."
            ) from None
        if threshold.metric not in (known := [column.key for column in (*measures(), *SETS)]):
            raise unknown("metric", threshold.metric, known)
        return threshold


def check_samples(thresholds: Sequence[Threshold], prompts: int) -> None:
    """Refuse thresholds that so few prompts cannot decide, before anything is painted."""
    for metric in (threshold.metric for threshold in thresholds):
        needed = {"fid": FID_SAMPLES, "kid": KID_SAMPLES}.get(metric.removesuffix("_real"), 1)
        if prompts < needed:
            raise DitQuantError(f"{metric} needs at least {needed} prompts, got {prompts}. Give more, or leave it out.")


def verdict(results: Results, thresholds: Sequence[Threshold]) -> tuple[bool, list[str]]:
    """Return whether every model but the reference meets every threshold, and a line for each model.

    What could not be measured, such as caption accuracy on prompts that are no scenes, is not met.
    """
    lines, go = [], True
    for model in results.models[1:]:
        missed = _missed(model, thresholds)
        go = go and not missed
        lines.append(f"{model.name}: {'no-go, ' + ', '.join(missed) if missed else 'go'}")
    return go, lines


def _missed(model: ModelResult, thresholds: Sequence[Threshold]) -> list[str]:
    values = {name: found[statistic_of(name)] for name, found in model.summary().items()} | model.scores
    missed = []
    for threshold in thresholds:
        if threshold.metric not in values:
            missed.append(f"{threshold.metric} was not measured")
            continue
        value = values[threshold.metric]
        if not _SIGNS[threshold.sign](value, threshold.bound):  # also where the value is NaN
            missed.append(f"{threshold.metric} {value:.4g} is not {threshold.sign} {threshold.bound:g}")
    return missed
