"""Progress bars with the time left, for work that takes more than a moment."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

DELAY_S = 2.0
LOG_INTERVAL_S = 10.0


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar that appears after two seconds; in a log file it writes a line every ten."""
    interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
    return tqdm(iterable, delay=DELAY_S, mininterval=interval, **options)


def say(line: str) -> None:
    """Print a line on standard error, above the bars."""
    tqdm.write(line, file=sys.stderr)


def minutes(seconds: float) -> int:
    """Round a time up to what is worth saying."""
    return max(1, round(seconds / 60))
