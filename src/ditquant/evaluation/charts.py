"""Line and point charts as SVG: coordinates for the page's template, no library."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 708, 12, 248
TICKS = 6


@dataclass(frozen=True)
class Chart:
    """Series over the positions 1, 2, ...; `names` are what stands there, None and infinite values are left out.

    `joined` draws lines between the points; `scale` is "linear" or "log" (positive values only).
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[float | None]]
    names: Sequence[str] = field(default_factory=list)
    joined: bool = True
    scale: str = "linear"

    def page_data(self) -> dict[str, Any]:
        """Return coordinates in units of the view box, y downwards."""
        values = [v for points in self.series.values() for v in points if self._drawable(v)]
        ticks = log_ticks(values) if self.scale == "log" else linear_ticks(values)
        place_y = self._placer(ticks, values)
        count = max((len(points) for points in self.series.values()), default=0)
        step = (RIGHT - LEFT) / max(count, 1)

        def place_x(index: int) -> float:
            return round(LEFT + step * (index + 0.5), 1)

        x_ticks = [int(t) for t in linear_ticks([1, count]) if t == int(t) and 1 <= t <= count] or [1]
        return {
            "kind": "chart",
            "title": self.title,
            "x_label": self.x_label,
            "y_label": self.y_label,
            "joined": self.joined,
            **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
            "x_ticks": [{"at": place_x(t - 1), "text": str(t)} for t in x_ticks],
            "y_ticks": [{"at": place_y(t), "text": f"{t:g}"} for t in ticks],
            "series": [self._line(name, points, place_x, place_y) for name, points in self.series.items()],
        }

    def _drawable(self, value: float | None) -> bool:
        return value is not None and math.isfinite(value) and (self.scale != "log" or value > 0)

    def _placer(self, ticks: Sequence[float], values: Sequence[float]) -> Callable[[float], float]:
        warp = math.log10 if self.scale == "log" else float
        low, high = (warp(end([*ticks, *values])) for end in (min, max))
        return lambda value: round(BOTTOM - (BOTTOM - TOP) * (warp(value) - low) / (high - low or 1), 1)

    def _line(self, name: str, points: Sequence[float | None], place_x: Callable, place_y: Callable) -> dict[str, Any]:
        placed = []
        for i, value in enumerate(points):
            if self._drawable(value):
                where = self.names[i] if i < len(self.names) else str(i + 1)
                placed.append({"x": place_x(i), "y": place_y(value), "text": f"{name}, {where}: {value:.4g}"})
        return {"name": name, "points": placed, "path": " ".join(f"{p['x']},{p['y']}" for p in placed)}


def linear_ticks(values: Sequence[float]) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten that span the values."""
    if not values:
        return [0.0, 1.0]
    low, high = min(values), max(values)
    rough = (high - low or abs(high) or 1) / (TICKS - 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def log_ticks(values: Sequence[float]) -> list[float]:
    """Return the powers of ten that span the values."""
    if not values:
        return [1.0, 10.0]
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**i for i in range(first, max(last, first + 1) + 1)]
