"""A bound that a figure of a comparison must keep, as a recipe and the command line write it: `step_sqnr_db>=20`."""

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ditquant.errors import DitQuantError
from ditquant.registry import unknown

# named here, so that reading a recipe needs nothing that measures
METRICS = (
    *("step_sqnr_db", "latent_sqnr_db", "psnr_db", "ssim", "lpips", "clip_score", "caption_accuracy"),
    *("flicker", "warp_error", "fid", "fid_real", "kid", "kid_real"),
)
_SIGNS = {">=": operator.ge, "<=": operator.le}
_RULE = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([-+0-9.eE]+)\s*")


@dataclass(frozen=True)
class Threshold:
    """`metric` sign `bound`, such as `step_sqnr_db >= 20`."""

    metric: str
    sign: str
    bound: float

    @staticmethod
    def parse(text: Any) -> "Threshold":
        """Read a threshold as it is typed.

        Raises:
            DitQuantError: anything but a known metric, >= or <=, and a number.
        """
        found = _RULE.fullmatch(text) if isinstance(text, str) else None
        try:
            threshold = Threshold(found[1], found[2], float(found[3]))  # type: ignore[index]
        except (TypeError, ValueError):
            threshold = None
        if threshold is None or not math.isfinite(threshold.bound):
            raise DitQuantError(
                f"{text!r} is no threshold. Write a metric, >= or <=, and a number: 'step_sqnr_db>=20'."
            )
        if threshold.metric not in METRICS:
            raise unknown("metric", threshold.metric, METRICS)
        return threshold

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound!r}"

    def met(self, value: float) -> bool:
        """Say whether a value keeps the bound; NaN keeps none."""
        return _SIGNS[self.sign](value, self.bound)


def read_thresholds(data: Any, what: str) -> tuple[Threshold, ...]:
    """Read a list of thresholds as it stands in a file.

    Raises:
        DitQuantError: something else than a list, or an entry that is no threshold.
    """
    if not isinstance(data, list | tuple):
        raise DitQuantError(f"{what} must be a list such as ['step_sqnr_db>=20'], got {data!r}.")
    try:
        return tuple(Threshold.parse(text) for text in data)
    except DitQuantError as error:
        raise DitQuantError(f"{what}: {error}") from None


def overridden(own: Iterable[Threshold], given: Iterable[Threshold]) -> tuple[Threshold, ...]:
    """Return the thresholds of a model: its `own`, but for metrics that are `given`, and the given ones."""
    given = tuple(given)
    metrics = {threshold.metric for threshold in given}
    return (*(threshold for threshold in own if threshold.metric not in metrics), *given)
