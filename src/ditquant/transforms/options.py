"""The options of transforms: what a recipe may ask of a fit, and what a stored spec may ask of `empty`."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ditquant.errors import DitQuantError
from ditquant.registry import unknown
from ditquant.transforms.hadamard_matrix import factors

ROTATIONS = ("hadamard", "dual_rotation", "fast_dual_rotation")


def _integer(low: int, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high


_BITS = (lambda value: value is None or _integer(2, 8)(value), "an integer from 2 to 8, or none")
_ROTATION = (lambda value: value in ROTATIONS, "one of " + ", ".join(ROTATIONS))
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "alpha": (_number(0, 1), "a number from 0 to 1"),
    "block": (
        lambda value: value is None or _integer(2)(value),
        "an integer of at least 2, or none for the full width",
    ),
    "seed": (_integer(0, 2**63 - 1), "an integer of at least 0"),
    "threshold": (_number(0, 1e30), "a number of at least 0"),
    "over": (lambda value: value in ("all", "timesteps"), "all or timesteps"),
    "select": (lambda value: value in ("metric", "error"), "metric or error"),
    "salient": _ROTATION,
    "mild": _ROTATION,
    "weight_bits": _BITS,
    "act_bits": _BITS,
}


def check_values(kind: str, **options: Any) -> None:
    """Refuse option values that no fit accepts."""
    for name, value in options.items():
        accepts, allowed = CHECKS[name]
        if not accepts(value):
            raise DitQuantError(f"{name} {value!r} of transform {kind!r} is not allowed. Choose {allowed}.")


def option_names(fit: Callable[..., Any]) -> list[str]:
    """The options of a fit: its keyword-only parameters."""
    return [p.name for p in inspect.signature(fit).parameters.values() if p.kind is p.KEYWORD_ONLY]


def stored_block(kind: str, in_features: int, options: Mapping[str, Any]) -> int:
    """Read the only option of a stored rotation, a block that divides the width."""
    stored_none(kind, {name: value for name, value in options.items() if name != "block"}, ("block",))
    block = options.get("block")
    if type(block) is not int or block < 1 or in_features % block:
        raise DitQuantError(
            f"block {block!r} of transform {kind!r} does not divide {in_features} channels. "
            "The plan does not belong to this model."
        )
    factors(block)
    return block


def stored_none(kind: str, options: Mapping[str, Any], allowed: tuple[str, ...] = ()) -> None:
    """Refuse any option of a stored transform."""
    for name in options:
        raise unknown(f"option of stored transform {kind!r}", name, allowed)
