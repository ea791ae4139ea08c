"""What a rule leaves to measurement: alternatives between which the error of each layer's output decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditquant.errors import DitQuantError
from ditquant.specs import TransformSpec, build


@dataclass(frozen=True)
class Choice:
    """Alternatives to a rule's transforms, and clip ratios in place of its activation's; empty: as the rule says."""

    transforms: tuple[tuple[TransformSpec, ...], ...] = ()
    clip: tuple[float, ...] = ()

    def __post_init__(self):
        for ratio in self.clip:
            if type(ratio) not in (int, float) or not 0 < ratio <= 1:
                raise DitQuantError(f"clip {ratio!r} is not allowed. Choose numbers above 0, at most 1.")

    def __bool__(self) -> bool:
        return bool(self.transforms or self.clip)

    @staticmethod
    def from_dict(data: Any, what: str = "what is chosen") -> "Choice":
        """Read a choice as it stands in a recipe.

        Raises:
            DitQuantError: unknown keys, and values that are not allowed.
        """
        given = dict(data) if isinstance(data, Mapping) else data
        if isinstance(given, dict):
            for key in given.keys() & {"transforms", "clip"}:
                if not _is_list(given[key]):
                    raise DitQuantError(f"{key} of {what} must be a list, got {given[key]!r}.")
            given["transforms"] = tuple(read_transforms(chain, what) for chain in given.get("transforms", ()))
            given["clip"] = tuple(given.get("clip", ()))
        return build(Choice, given, what)


def read_transforms(data: Any, what: str) -> tuple[TransformSpec, ...]:
    """Build transforms from their kinds, or from mappings with kind and options."""
    if not _is_list(data):
        raise DitQuantError(f"transforms of {what} must be a list, got {data!r}.")
    return tuple(
        TransformSpec(t) if isinstance(t, str) else build(TransformSpec, t, f"transform of {what}") for t in data
    )


def _is_list(data: Any) -> bool:
    return isinstance(data, Sequence) and not isinstance(data, str)
