"""Choose format and bits of every layer within a budget of bits or milliseconds; the result is a recipe."""

from ditquant.auto.budget import Auto, check_budget, choose, spend
from ditquant.auto.clock import Clock
from ditquant.auto.front import Point, Way, descend, hull
from ditquant.auto.ways import BASE, measure, offers

__all__ = [
    "BASE",
    "Auto",
    "Clock",
    "Point",
    "Way",
    "check_budget",
    "choose",
    "descend",
    "hull",
    "measure",
    "offers",
    "spend",
]
