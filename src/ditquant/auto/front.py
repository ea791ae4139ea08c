"""The Pareto front of a model whose layers may each be stored in several ways.

Shares of the error add up, and so do bytes and milliseconds. Along the lower convex hull of each layer's ways, the
steepest step first: every choice on the way is the one of least error among those that cost no more than it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ditquant.rule import Rule
from ditquant.specs import WeightSpec


@dataclass(frozen=True)
class Way:
    """One way to store a layer: the rule (None: in floating point), its bytes, its share of the error, its time."""

    rule: Rule | None
    size: int
    noise: float
    ms: float = math.nan


@dataclass(frozen=True)
class Point:
    """One point of the front: all-in bits a weight, the error against all layers at 4 bits, in dB, and milliseconds
    of one call's layers, NaN where they were not measured."""

    bits: float
    noise_db: float
    ms: float = math.nan


Cost = Callable[[Way], float]
Choice = dict[str, Way]


def by_size(way: Way) -> float:
    """Cost of a budget of bits."""
    return way.size


def by_time(way: Way) -> float:
    """Cost of a budget of milliseconds."""
    return way.ms


def descend(ways: Mapping[str, Sequence[Way]], cost: Cost = by_size) -> list[Choice]:
    """Return choices of rising cost: at each, it went where it lowers the error most."""
    hulls = {name: hull(found, cost) for name, found in ways.items()}
    choice = {name: found[0] for name, found in hulls.items()}
    steps = [(_slope(a, b, cost), name, b) for name, found in hulls.items() for a, b in pairwise(found)]
    path = [dict(choice)]
    for _, name, way in sorted(steps, key=lambda step: step[0]):
        choice[name] = way
        path.append(dict(choice))
    return path


def hull(ways: Sequence[Way], cost: Cost = by_size) -> list[Way]:
    """Return the lower convex hull of error over cost, costs rising and errors falling."""
    found: list[Way] = []
    for way in sorted(ways, key=lambda w: (cost(w), w.noise, w.size)):
        if found and way.noise >= found[-1].noise:
            continue
        while len(found) > 1 and _slope(found[-2], way, cost) <= _slope(found[-2], found[-1], cost):
            found.pop()
        found.append(way)
    return found


def point(choice: Mapping[str, Way], ways: Mapping[str, Sequence[Way]], weights: int) -> Point:
    """Return where a choice of one way a layer lies."""
    usual = sum(_usual(found).noise for found in ways.values())
    noise = math.fsum(way.noise for way in choice.values())
    level = 10 * math.log10(noise / usual) if noise > 0 and usual > 0 else -math.inf
    return Point(bits(choice, weights), level, ms(choice))


def bits(choice: Mapping[str, Way], weights: int) -> float:
    """Return the all-in bits a weight."""
    return 8 * sum(way.size for way in choice.values()) / weights


def ms(choice: Mapping[str, Way]) -> float:
    """Return the milliseconds of one call's layers."""
    return math.fsum(way.ms for way in choice.values())


def _slope(a: Way, b: Way, cost: Cost) -> float:
    return (b.noise - a.noise) / (cost(b) - cost(a)) if cost(b) > cost(a) else -math.inf


def _usual(ways: Sequence[Way]) -> Way:
    """The way that a front is told against: Twin-Log at 4 bits."""
    return next((w for w in ways if w.rule is not None and w.rule.weight == WeightSpec(4, "twin_log")), ways[-1])
