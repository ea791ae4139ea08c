"""Time calls that take turns: what the machine does besides then meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Seconds(float):
    """What a call returns that has timed itself, in another process."""


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time every call once a round, in seconds, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            taken = timed(call, clock)
            if i:
                seconds[name].append(taken)
    return seconds


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one call, with all that it leaves to a GPU."""
    synchronize()
    start = clock()
    found = call()
    synchronize()
    return float(found) if isinstance(found, Seconds) else clock() - start


def synchronize() -> None:
    """Wait for a GPU, if one is used."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def median_ms(seconds: list[float]) -> float:
    """Return the median in milliseconds."""
    return 1000 * statistics.median(seconds)


def ratio(seconds: Mapping[str, list[float]], of: str, to: str) -> float:
    """How many times faster `of` is than `to`: the median of the ratios round by round."""
    return statistics.median(b / a for a, b in zip(seconds[of], seconds[to], strict=True))


def sqnr_db(exact: Tensor, found: Tensor) -> float:
    """Signal to error, in decibel; NaN where a value is not finite."""
    exact, found = exact.double(), found.double().to(exact.device)
    return float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum()))
