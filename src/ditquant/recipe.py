"""What the user wants: rules that say, by role or by layer name, how linear layers are quantized.

A rule may leave bits out; a recipe's variants (`w4a8`: 4-bit weights, 8-bit activations; `a16`: activations stay in
floating point) fill them in, so that one file holds a method at all its bits.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ditquant.attention import AttentionSpec
from ditquant.errors import DitQuantError
from ditquant.recipe_file import read_recipe_file
from ditquant.registry import unknown
from ditquant.rule import Rule
from ditquant.specs import build
from ditquant.threshold import Threshold, read_thresholds

__all__ = ["Recipe", "Rule", "list_recipes"]

_KEYS = ("name", "description", "variants", "attention", "any_width", "rules", "thresholds")


@dataclass(frozen=True)
class Recipe:
    """Rules in order: the first that matches a layer decides; a layer that none matches stays in floating point.

    `attention` is how tokens attend (PAROAttention); with it a recipe may have no rules. `any_width` is for recipes
    written without a model in view: a group size may divide none of its widths (see `groups`). `thresholds` decide
    nothing here: a comparison holds the quantized model to them.
    """

    name: str
    rules: tuple[Rule, ...]
    description: str = ""
    attention: AttentionSpec | None = None
    any_width: bool = False
    thresholds: tuple[Threshold, ...] = ()

    def __post_init__(self):
        if type(self.name) is not str or not self.name or type(self.description) is not str:
            raise DitQuantError(f"a recipe needs a name and may have a description in words, got name {self.name!r}.")
        if type(self.any_width) is not bool:
            raise DitQuantError(
                f"any_width {self.any_width!r} of recipe {self.name!r} is not allowed. Choose true or false."
            )
        if not self.rules and self.attention is None:
            raise DitQuantError(f"recipe {self.name!r} has no rules. Give at least one under 'rules'.")

    def match(self, role: str, name: str) -> Rule | None:
        """Return the first rule about a layer, None if there is none."""
        return next((rule for rule in self.rules if rule.matches(role, name)), None)

    def check_patterns(self, layers: Iterable[tuple[str, str]]) -> None:
        """Check the recipe against the (name, role) of a model's linear layers.

        Raises:
            DitQuantError: a pattern of layer names matches none, or rules quantize no layer at all.
        """
        layers = list(layers)
        if not self.rules:
            return
        for rule in self.rules:
            if rule.names_layers and not any(rule.matches(role, name) for name, role in layers):
                raise _no_layer(rule.target, [name for name, _ in layers])
        rules = [self.match(role, name) for name, role in layers]
        if not any(rule is not None and rule.weight is not None for rule in rules):
            roles = ", ".join(sorted({role for _, role in layers})) or "none"
            raise DitQuantError(
                f"recipe {self.name!r} quantizes none of the model's {len(layers)} linear layers. "
                f"Write a rule for one of their roles: {roles}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data with all bits written out."""
        data = json.loads(json.dumps(asdict(self))) | {"thresholds": [str(t) for t in self.thresholds]}
        return {k: v for k, v in data.items() if v or k not in ("attention", "any_width", "thresholds")}

    def makes(self) -> dict[str, Any]:
        """Return the part of `to_dict`'s data that the quantized layers depend on."""
        return {k: v for k, v in self.to_dict().items() if k not in ("any_width", "thresholds")}

    @staticmethod
    def from_dict(data: Any, variant: str | None = None, what: str = "a recipe") -> "Recipe":
        """Read a recipe as it stands in a file; `variant` may be left out where there is at most one.

        Raises:
            DitQuantError: anything that is not a recipe, said in one line.
        """
        _check_keys(data, what)
        name, variants = data["name"], data.get("variants", ())
        bits = {v: _variant_bits(v, what) for v in variants}
        if variant is None and len(variants) == 1:
            variant = variants[0]
        if variants and variant is None:
            raise DitQuantError(f"{what} has variants. Add one of them to its name: {', '.join(variants)}.")
        if variant is not None and variant not in bits:
            raise unknown(f"variant of {what}", variant, bits)
        chosen = None if variant is None else bits[variant]
        rules = tuple(
            Rule.from_dict(rule, chosen, f"rule {i} of {what}") for i, rule in enumerate(data.get("rules", ()), 1)
        )
        attention = data.get("attention")
        if attention is not None:
            attention = _read_attention(attention, f"attention of {what}")
        thresholds = read_thresholds(data.get("thresholds", ()), f"'thresholds' of {what}")
        full, any_width = name if variant is None else f"{name}-{variant}", data.get("any_width", False)
        return Recipe(full, rules, data.get("description", ""), attention, any_width, thresholds)

    @staticmethod
    def load(recipe: "str | Path | Mapping[str, Any] | Recipe") -> "Recipe":
        """Return a recipe by its shipped name, from a YAML file, or from a mapping; a Recipe is returned as it is.

        A file with several variants is named with one of them: `my.yaml:w4a8`.
        """
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, Mapping):
            return Recipe.from_dict(recipe)
        if not isinstance(recipe, str | Path):
            raise DitQuantError(f"a recipe must be a name, a file or a mapping, got {type(recipe).__name__}.")
        text = str(recipe)
        if isinstance(recipe, Path) or re.search(r"[/\\]|\.ya?ml(:|$)", text):
            path, variant = text, None
            if found := re.fullmatch(r"(.+):(w\d+a\d+)", text):
                path, variant = found.groups()
            return Recipe.from_dict(read_recipe_file(Path(path), list_recipes()), variant, f"recipe {path!r}")
        if text not in _shipped():
            raise unknown("recipe", text, list_recipes())
        data, variant = _shipped()[text]
        return Recipe.from_dict(data, variant, f"recipe {text!r}")


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes, the weakest bits of every method first."""
    return list(_shipped())


@cache
def _shipped() -> dict[str, tuple[Mapping[str, Any], str | None]]:
    """Map the name of every shipped recipe to its file's data and its variant."""
    found: dict[str, tuple[Mapping[str, Any], str | None]] = {}
    for file in sorted(resources.files("ditquant").joinpath("recipes").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
            for variant in data.get("variants", [None]):
                found[data["name"] if variant is None else f"{data['name']}-{variant}"] = (data, variant)
    return found


def _check_keys(data: Any, what: str) -> None:
    if not isinstance(data, Mapping):
        raise DitQuantError(f"{what} must be a mapping with 'name' and 'rules', got {type(data).__name__}.")
    for key in data:
        if key not in _KEYS:
            raise unknown(f"key of {what}", key, _KEYS)
    if "name" not in data or not (data.get("attention") is not None or "rules" in data):
        raise DitQuantError(f"{what} needs a 'name' and a list of 'rules'. Add what is missing.")
    for key in ("rules", "variants"):
        if key in data and (not isinstance(data[key], list | tuple) or not data[key]):
            raise DitQuantError(f"{what}: {key!r} must be a list with at least one entry, got {data[key]!r}.")


def _read_attention(data: Any, what: str) -> AttentionSpec:
    try:
        return build(AttentionSpec, data, what)
    except DitQuantError as error:
        raise error if what in str(error) else DitQuantError(f"{what}: {error}") from None


def _variant_bits(variant: Any, what: str) -> tuple[int, int]:
    found = re.fullmatch(r"w([2-8])a([2-8]|16)", str(variant))
    if found is None:
        raise DitQuantError(
            f"{what}: variant {variant!r} is not allowed. Write w with 2 to 8 and a with 2 to 8 or 16, such as w4a8."
        )
    return int(found[1]), int(found[2])


def _no_layer(pattern: str, names: list[str]) -> DitQuantError:
    close = get_close_matches(pattern.removeprefix("re:"), names, n=3, cutoff=0.3) or names[:3]
    near = f"Layers near it: {', '.join(close)}." if close else "The model has no linear layer that can be quantized."
    return DitQuantError(f"the rule's pattern {pattern!r} matches no layer of the model. {near}")
