"""The measured ways of layers in a work folder, one file a layer: a killed run measures none of them twice."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from ditquant.atomic import atomic_file, clear_errors
from ditquant.auto.clock import Clock
from ditquant.auto.front import Way
from ditquant.errors import DitQuantError, first_line
from ditquant.progress import say
from ditquant.rule import Rule

_FOLDER = "ways"


def save_ways(work: Path, layer: str, ways: Sequence[Way], clock: Clock | None) -> None:
    """Write the ways of a layer, and the times that a clock has so far: layers of one shape are timed once."""
    file = _file(work, layer)
    with clear_errors(file):
        file.parent.mkdir(exist_ok=True)
    with atomic_file(file, overwrite=True) as part:
        kept = {"ways": [asdict(way) for way in ways], "times": {} if clock is None else clock.table}
        part.write_text(json.dumps(kept))


def load_ways(work: Path, layers: Iterable[str], clock: Clock | None) -> dict[str, list[Way]]:
    """Return the ways of the layers that are there, and give a clock their times; a file in pieces is told."""
    found: dict[str, list[Way]] = {}
    for layer in layers:
        file = _file(work, layer)
        if not file.exists():
            continue
        try:
            ways, times = _read(file)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, DitQuantError) as error:
            say(f"{file} is damaged, the layers are measured again: {first_line(error)}")
            continue
        found[layer] = ways
        if clock is not None:
            clock.table |= times
    return found


def _file(work: Path, layer: str) -> Path:
    return work / _FOLDER / f"{layer}.json"


def _read(file: Path) -> tuple[list[Way], dict[str, float]]:
    kept = json.loads(file.read_text())
    ways = [_way(**way) for way in kept["ways"]]
    if not ways:
        raise ValueError("it holds no ways")
    return ways, {key: float(ms) for key, ms in kept["times"].items()}


def _way(rule: dict | None, size: int, noise: float, ms: float) -> Way:
    return Way(None if rule is None else Rule.from_dict(rule), int(size), float(noise), float(ms))
