"""What a quantized layer is: plain data, JSON both ways, checked where it is made.

`WeightSpec` and `ActSpec` say what numbers mean, `LayerPlan` what was decided for one layer, `QuantPlan` for a model.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ditquant.errors import DitQuantError
from ditquant.registry import unknown
from ditquant.threshold import Threshold, read_thresholds

PLAN_VERSION = 1
_PLAN_KEYS = ("version", "recipe", "attention", "schemes", "layers", "calibration", "thresholds")
_HASH = re.compile("[0-9a-f]{16}")
GRANULARITIES = ("tensor", "sample", "token", "group")


def _check_bits(bits: Any, what: str) -> None:
    if type(bits) is not int or not 2 <= bits <= 8:
        raise DitQuantError(f"{what} bits {bits!r} are not allowed. Choose an integer from 2 to 8.")


def _check_bool(value: Any, what: str) -> None:
    if type(value) is not bool:
        raise DitQuantError(f"{what} {value!r} is not allowed. Choose true or false.")


def _check_group(group_size: Any, what: str) -> None:
    if group_size is not None and (type(group_size) is not int or group_size < 1):
        raise DitQuantError(f"{what} group_size {group_size!r} is not allowed. Choose a positive integer or none.")


def build(cls: type, data: Any, what: str) -> Any:
    """Make a dataclass from a mapping, refusing unknown and missing keys."""
    if not isinstance(data, Mapping):
        raise DitQuantError(f"{what} must be a mapping, got {type(data).__name__}.")
    allowed = {f.name for f in fields(cls)}
    for key in data:
        if key not in allowed:
            raise unknown(f"key of {what}", key, allowed)
    try:
        return cls(**data)
    except TypeError as error:
        raise DitQuantError(f"{what} is incomplete: {error}.") from None


@dataclass(frozen=True)
class WeightSpec:
    """Static weights: `bits` a code, one parameter set per output row (and per group of input channels)."""

    bits: int
    format: str = "affine"
    group_size: int | None = None
    symmetric: bool = True

    def __post_init__(self):
        _check_bits(self.bits, "weight")
        _check_group(self.group_size, "weight")
        _check_bool(self.symmetric, "weight symmetric")
        if type(self.format) is not str:
            raise DitQuantError(f"weight format {self.format!r} is not allowed. Give the name of a format.")

    def groups(self, in_features: int, name: str = "the layer") -> int:
        """Number of groups in a row of `in_features` channels (1 without groups)."""
        if self.group_size is None:
            return 1
        check_divides(self.group_size, in_features, name)
        return in_features // self.group_size


@dataclass(frozen=True)
class ActSpec:
    """Dynamic activations: one scale per tensor, sample, token, or token and group of channels.

    The range is `clip` times the one seen; values outside are clamped to its ends.
    """

    bits: int
    granularity: str = "token"
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool = True
    clip: float = 1.0

    def __post_init__(self):
        _check_bits(self.bits, "activation")
        _check_group(self.group_size, "activation")
        _check_bool(self.symmetric, "activation symmetric")
        if self.granularity not in GRANULARITIES:
            raise unknown("granularity", self.granularity, GRANULARITIES)
        if (self.granularity == "group") != (self.group_size is not None):
            raise DitQuantError(
                f"activation granularity {self.granularity!r} with group_size {self.group_size}: "
                "give a group_size with granularity 'group', and only there."
            )
        if self.dynamic is not True:
            raise DitQuantError("activation dynamic must be true: static activation scales are not offered.")
        if type(self.clip) not in (int, float) or not 0 < self.clip <= 1:
            raise DitQuantError(f"activation clip {self.clip!r} is not allowed. Choose a number above 0, at most 1.")
        object.__setattr__(self, "clip", float(self.clip))  # 1 and 1.0 are one plan


@dataclass(frozen=True)
class TransformSpec:
    """Kind of a transform (a name in TRANSFORMS) and the options that rebuild it empty."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if type(self.kind) is not str or not isinstance(self.options, Mapping):
            raise DitQuantError(f"a transform needs a kind and options, got {self.kind!r} and {self.options!r}.")


@dataclass(frozen=True)
class LayerPlan:
    """What was decided for one linear layer; `activation` None leaves its input in floating point."""

    weight: WeightSpec
    activation: ActSpec | None = None
    transforms: tuple[TransformSpec, ...] = ()
    rank: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_dict(data: Any, what: str = "a layer's plan") -> "LayerPlan":
        """Read `to_dict`'s data; raises DitQuantError on anything else."""
        plan = build(LayerPlan, data, what)
        if not isinstance(plan.transforms, list | tuple):
            raise DitQuantError(f"{what}: transforms must be a list.")
        if type(plan.rank) is not int or plan.rank < 0:
            raise DitQuantError(f"{what}: rank {plan.rank!r} is not allowed. Choose 0 or a positive integer.")
        return LayerPlan(
            build(WeightSpec, plan.weight, f"weight of {what}"),
            None if plan.activation is None else build(ActSpec, plan.activation, f"activation of {what}"),
            tuple(build(TransformSpec, t, f"transform of {what}") for t in plan.transforms),
            plan.rank,
        )


@dataclass(frozen=True)
class QuantPlan:
    """One exact entry per quantized layer, by full dotted name; the only thing stored in config.json.

    `calibration` holds the hashes of the prompts that the layers were fitted to (see `prompt_hash`), not their texts.
    `thresholds` are the recipe's: what a comparison of this model must find.
    """

    layers: Mapping[str, LayerPlan]
    recipe: str = ""
    attention: Mapping[str, Any] | None = None
    version: int = PLAN_VERSION
    calibration: tuple[str, ...] = ()
    thresholds: tuple[Threshold, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data; equal layer plans are written once and layers refer to them by index.

        Layers are in the order of their names, as config.json has them: equal plans are equal data.
        """
        schemes: dict[str, int] = {}
        index = {}
        for name, plan in sorted(self.layers.items()):
            key = json.dumps(plan.to_dict(), sort_keys=True)
            index[name] = schemes.setdefault(key, len(schemes))
        data = {
            "version": self.version,
            "recipe": self.recipe,
            "attention": None if self.attention is None else dict(self.attention),
            "schemes": [json.loads(key) for key in schemes],
            "layers": index,
        }
        data |= {"calibration": list(self.calibration)} if self.calibration else {}
        return data | ({"thresholds": [str(t) for t in self.thresholds]} if self.thresholds else {})

    @staticmethod
    def from_dict(data: Any) -> "QuantPlan":
        """Read `to_dict`'s data.

        Raises:
            DitQuantError: a newer version, unknown keys, or entries that are not a plan.
        """
        if not isinstance(data, Mapping):
            raise DitQuantError(f"a quantization plan must be a mapping, got {type(data).__name__}.")
        version = data.get("version")
        if type(version) is not int or version < 1:
            raise DitQuantError(f"plan version {version!r} is not a version. Expected 1 to {PLAN_VERSION}.")
        if version > PLAN_VERSION:
            raise DitQuantError(
                f"the checkpoint has plan version {version}, this ditquant reads up to {PLAN_VERSION}. Update ditquant."
            )
        for key in data:
            if key not in _PLAN_KEYS:
                raise unknown("key of the plan", key, _PLAN_KEYS)
        schemes, layers = data.get("schemes"), data.get("layers")
        if not isinstance(schemes, list) or not isinstance(layers, Mapping):
            raise DitQuantError("the plan needs a list 'schemes' and a mapping 'layers'.")
        plans = [LayerPlan.from_dict(s, f"scheme {i} of the plan") for i, s in enumerate(schemes)]
        for name, i in layers.items():
            if type(name) is not str or type(i) is not int or not 0 <= i < len(plans):
                raise DitQuantError(f"layer {name!r} of the plan refers to scheme {i!r} of {len(plans)}.")
        recipe, attention = data.get("recipe", ""), data.get("attention")
        if type(recipe) is not str or not (attention is None or isinstance(attention, Mapping)):
            raise DitQuantError("the plan's 'recipe' must be a name and its 'attention' a mapping or null.")
        calibration = data.get("calibration", [])
        if not isinstance(calibration, list) or not all(type(h) is str and _HASH.fullmatch(h) for h in calibration):
            raise DitQuantError("the plan's 'calibration' must be a list of hashes of 16 hexadecimal digits.")
        thresholds = read_thresholds(data.get("thresholds", []), "'thresholds' of the plan")
        entries = {name: plans[i] for name, i in layers.items()}
        return QuantPlan(entries, recipe, attention, version, tuple(calibration), thresholds)

    def hash(self) -> str:
        """Return 16 hex digits that change with any entry of the plan."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def prompt_hash(prompt: str) -> str:
    """Return 16 hex digits of a prompt, whatever its spaces and capitals."""
    return hashlib.sha256(" ".join(prompt.lower().split()).encode()).hexdigest()[:16]


def in_words(
    weight: WeightSpec, activation: ActSpec | None, transforms: Iterable[TransformSpec] = (), rank: int = 0
) -> str:
    """Say in words what numbers a layer has."""
    group = f" in groups of {weight.group_size}" if weight.group_size else ""
    words = f"{weight.bits}-bit {weight.format} weights{group}"
    words += ", floating-point activations" if activation is None else f", {activation.bits}-bit activations"
    words += "".join(f"{' + ' if i else ', '}{t.kind}" for i, t in enumerate(transforms))
    return words + (f", low-rank branch of {rank}" if rank else "")


def check_divides(group_size: int, in_features: int, name: str) -> None:
    """Refuse a group size that does not divide a layer's width, naming the divisors near it."""
    if in_features % group_size:
        divisors = [d for d in range(1, in_features + 1) if in_features % d == 0]
        near = sorted(sorted(divisors, key=lambda d: abs(d - group_size))[:4])
        raise DitQuantError(
            f"group_size {group_size} does not divide in_features {in_features} of {name!r}. "
            f"Divisors near it: {', '.join(map(str, near))}."
        )
