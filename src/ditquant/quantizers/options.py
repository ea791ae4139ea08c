"""The options of quantizers: what a recipe may ask for."""

from collections.abc import Callable, Mapping
from typing import Any

from ditquant.errors import DitQuantError

CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "block_size": (lambda value: type(value) is int and value >= 1, "an integer of at least 1"),
    "clip": (lambda value: value in (None, "mse"), "mse, or none"),
    "damping": (lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"),
    "gain": (lambda value: type(value) is bool, "true or false"),
    "joint": (lambda value: type(value) is bool, "true or false"),
    "order": (lambda value: value in ("best", "natural", "activation"), "best, natural or activation"),
}


def check_values(quantizer: str, options: Mapping[str, Any]) -> None:
    """Refuse option values that no quantizer accepts; an option without an entry is the quantizer's to check."""
    for name, value in options.items():
        accepts, allowed = CHECKS.get(name, (lambda _: True, ""))
        if not accepts(value):
            raise DitQuantError(f"{name} {value!r} of quantizer {quantizer!r} is not allowed. Choose {allowed}.")
