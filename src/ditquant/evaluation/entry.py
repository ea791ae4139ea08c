"""What a file of JSON says, read value by value: whatever is not as it must be is named with its place."""

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ditquant.errors import DitQuantError

T = TypeVar("T")
LARGEST = 2**63  # beyond it nothing is a size or a seed


@dataclass(frozen=True)
class Entry:
    """A value and where it stands in the results file `file`; every reader raises DitQuantError on anything else."""

    file: str
    value: Any
    where: str = "the file"

    def wrong(self, allowed: str) -> DitQuantError:
        """Make the error that says what would have been right."""
        return DitQuantError(
            f"{self.file} is not a results file: {self.where} must be {allowed}, got {reprlib.repr(self.value)}. "
            "Give a results.json as ditquant compare wrote it."
        )

    def __getitem__(self, key: str) -> "Entry":
        found = self.mapping()
        if key not in found:
            raise self.wrong(f"a mapping with {key!r}")
        return found[key]

    def get(self, key: str, default: Any) -> "Entry":
        """Return an entry that older files do not have."""
        return self.mapping().get(key, self._inside(f".{key}", default))

    def mapping(self) -> dict[str, "Entry"]:
        """Read a mapping."""
        if not isinstance(self.value, dict):
            raise self.wrong("a mapping")
        return {self._inside("", key).text(): self._inside(f".{key}", value) for key, value in self.value.items()}

    def list(self, read: Callable[["Entry"], T]) -> list[T]:
        """Read a list of equal things."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [read(self._inside(f"[{i}]", value)) for i, value in enumerate(self.value)]

    def text(self) -> str:
        """Read text that can be written again."""
        if not isinstance(self.value, str) or any("\ud800" <= letter <= "\udfff" for letter in self.value):
            raise self.wrong("text")
        return self.value

    def number(self) -> float:
        """Read a number; infinite and undefined ones are words."""
        if self.value in ("inf", "-inf", "nan"):
            return float(self.value)
        if type(self.value) not in (int, float) or (type(self.value) is int and abs(self.value) > LARGEST):
            raise self.wrong("a number")
        return float(self.value)

    def finite(self) -> float:
        """Read a number that is neither infinite nor negative."""
        if not (0 <= self.number() < math.inf):
            raise self.wrong("a finite number from 0 on")
        return self.number()

    def whole(self) -> int:
        """Read a whole number from 0 on."""
        if type(self.value) is not int or not 0 <= self.value < LARGEST:
            raise self.wrong("a whole number from 0 on")
        return self.value

    def maybe(self, read: Callable[["Entry"], T]) -> T | None:
        """Read what may be unknown."""
        return None if self.value is None else read(self)

    def _inside(self, place: str, value: Any) -> "Entry":
        return Entry(self.file, value, place.removeprefix(".") if self.where == "the file" else self.where + place)
