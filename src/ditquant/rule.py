"""One rule of a recipe: which layers it is about, and how they are quantized."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ditquant.choice import Choice, read_transforms
from ditquant.errors import DitQuantError
from ditquant.models.roles import ROLES
from ditquant.registry import unknown
from ditquant.specs import ActSpec, TransformSpec, WeightSpec, build


@dataclass(frozen=True)
class Rule:
    """How the layers that `target` names are quantized; `weight` None keeps them in floating point.

    `target` is `role:` with role names or globs (`role:ffn_up,cross_*`), a glob on the full dotted name of a layer,
    or `re:` with a regular expression that matches the whole name.
    """

    target: str
    weight: WeightSpec | None
    quantizer: str = "rtn"
    quantizer_options: Mapping[str, Any] = field(default_factory=dict)
    activation: ActSpec | None = None
    transforms: tuple[TransformSpec, ...] = ()
    rank: int = 0
    choose: Choice = field(default_factory=Choice)

    def __post_init__(self):
        _check_target(self.target)
        if type(self.quantizer) is not str:
            raise self._error(f"quantizer {self.quantizer!r} is not allowed. Give the name of a quantizer.")
        if not isinstance(self.quantizer_options, Mapping):
            raise self._error(f"quantizer_options must be a mapping, got {self.quantizer_options!r}.")
        if type(self.rank) is not int or self.rank < 0:
            raise self._error(f"rank {self.rank!r} is not allowed. Choose 0 or a positive integer.")
        settings = (self.activation, self.transforms, self.rank, self.quantizer_options, self.choose)
        if self.weight is None and any(settings):
            raise self._error("weight is null, which keeps the layer in floating point. Remove the other settings.")
        try:
            options = [self.quantizer_options, *(t.options for chain in self.chains for t in chain)]
            json.dumps([dict(o) for o in options], allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._error(f"options must be plain numbers, words, lists and mappings ({error}).") from None

    @property
    def chains(self) -> tuple[tuple[TransformSpec, ...], ...]:
        """The rule's transforms and the alternatives to them."""
        return (self.transforms, *self.choose.transforms)

    @property
    def names_layers(self) -> bool:
        """True if the target is a pattern of layer names rather than of roles."""
        return not self.target.startswith("role:")

    def matches(self, role: str, name: str) -> bool:
        """Say whether the rule is about a layer."""
        if not self.names_layers:
            return any(fnmatchcase(role, pattern) for pattern in _role_patterns(self.target))
        if self.target.startswith("re:"):
            return re.fullmatch(self.target.removeprefix("re:"), name) is not None
        return fnmatchcase(name, self.target)

    @staticmethod
    def from_dict(data: Any, bits: tuple[int, int] | None = None, what: str = "a rule") -> "Rule":
        """Read a rule as it stands in a recipe; `bits` of weights and activations stand in for those left out.

        Activations of 16 bits stay in floating point.

        Raises:
            DitQuantError: unknown or missing keys, and values that are not allowed.
        """
        given = dict(data) if isinstance(data, Mapping) else data
        if isinstance(given, dict):
            if "target" not in given or "weight" not in given:
                raise DitQuantError(
                    f"{what} needs a 'target' and a 'weight' (null keeps the layers in floating point)."
                )
            given["weight"] = _read_spec(WeightSpec, given["weight"], bits and bits[0], f"weight of {what}")
            given["activation"] = _read_spec(
                ActSpec, given.get("activation"), bits and bits[1], f"activation of {what}"
            )
            given["transforms"] = read_transforms(given.get("transforms", ()), what)
            given["choose"] = Choice.from_dict(given.get("choose", {}), f"what {what} chooses")
        return build(Rule, given, what)

    def _error(self, message: str) -> DitQuantError:
        return DitQuantError(f"rule {self.target!r}: {message}")


def _read_spec(cls: type, data: Any, bits: int | None, what: str) -> Any:
    """Build a spec, None from None; bits left out are the variant's, and 16 of them mean none."""
    if data is None:
        return None
    if isinstance(data, Mapping) and "bits" not in data:
        if bits is None:
            raise DitQuantError(f"{what} has no bits. Write them, or give the recipe variants such as [w4a8].")
        if bits == 16:
            return None
        data = {**data, "bits": bits}
    try:
        return build(cls, data, what)
    except DitQuantError as error:
        raise error if what in str(error) else DitQuantError(f"{what}: {error}") from None


def _role_patterns(target: str) -> list[str]:
    return [part.strip() for part in target.removeprefix("role:").split(",")]


def _check_target(target: Any) -> None:
    if type(target) is not str or not target:
        raise DitQuantError(
            f"rule target {target!r} is not allowed. Write role:NAME, a layer name or glob, or re:REGEX."
        )
    if target.startswith("role:"):
        for pattern in _role_patterns(target):
            if not any(fnmatchcase(role, pattern) for role in ROLES):
                raise unknown("role", pattern, ROLES)
    if target.startswith("re:"):
        try:
            re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise DitQuantError(f"rule target {target!r} is not a regular expression: {error}.") from None
