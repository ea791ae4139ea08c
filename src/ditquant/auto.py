"""Choose format and bits of every layer within a budget, by how much the model's prediction feels their error.

A layer is quantized in every way that is offered, on its own inputs. The error that its output then has on the sample,
weights and activations together, in the metric of the output's curvature, is its share of the prediction's error; these
shares add up (errors of different layers are nearly independent). Along the lower convex hull of each layer's ways, the
bytes go where they lower the error most: every budget on the way gives a point of the Pareto front.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ditquant.calibration import MAX_CALLS, Part, TensorStore, quantize_blocks, record_parts
from ditquant.engine import match, runner
from ditquant.errors import DitQuantError
from ditquant.fitting import choose_basis, fit_layer, output_noise
from ditquant.integrations.diffusers import transformers_of
from ditquant.models import Layer
from ditquant.nn import QuantLinear
from ditquant.quantizers import NEEDS_GRAM
from ditquant.recipe import Recipe, Rule
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats

BASE = "lrq-plus-w4a8"
TWIN_LOG_BITS = (2, 3, 4)
AFFINE_BITS = (3, 4, 5, 6, 8)
FLOAT_BYTES = 2


@dataclass(frozen=True)
class Way:
    """One way to store a layer: the rule (None: in floating point), its bytes and its share of the error."""

    rule: Rule | None
    size: int
    noise: float


@dataclass(frozen=True)
class Point:
    """One point of the front: all-in bits a weight, and the error against all layers at 4 bits, in dB."""

    bits: float
    noise_db: float


@dataclass(frozen=True)
class Auto:
    """What was chosen, as a recipe with a rule a layer, and the front that it lies on."""

    recipe: Recipe
    chosen: Point
    front: tuple[Point, ...]


@torch.no_grad()
def choose(
    model: Any,
    bits: float,
    *,
    prompts: Sequence[str | int] | None = None,
    forward: Callable[[nn.Module], object] | None = None,
    seed: int = 0,
    max_calls: int = MAX_CALLS,
    settings: Mapping[str, float | None] | None = None,
    base: str | Mapping[str, Any] | Recipe = BASE,
) -> Auto:
    """Return the recipe of least error among those of at most `bits` a weight, all-in; the model stays as it is.

    Every layer may have Twin-Log weights of 2 to 4 bits, uniform ones of 3 to 8, or stay in floating point; all else
    is as `base` says.

    Raises:
        DitQuantError: no data, several transformers, or a budget below what 2 bits take.
    """
    if prompts is None and forward is None:
        raise DitQuantError("choosing bits needs calibration. Give prompts=, or forward= for a module.")
    parts = transformers_of(model)
    if len(parts) != 1:
        raise DitQuantError(f"bits are chosen for one transformer at a time, this pipeline has {', '.join(parts)}.")
    [(name, part)] = parts.items()
    base = Recipe.load(base)
    matched = match(part, base)
    ways = measure(name, part, matched, runner(model, prompts, forward, seed, settings or {}), seed, max_calls)
    return spend(ways, sum(layer.parameters for layer, _ in matched), bits)


def spend(ways: Mapping[str, Sequence[Way]], weights: int, bits: float) -> Auto:
    """Return the recipe of least error among those of at most `bits` a weight, from the measured ways of all layers."""
    path = descend(ways)
    fitting = [step for step in path if 8 * sum(w.size for w in step.values()) / weights <= bits]
    if not fitting:
        least = 8 * sum(way.size for way in path[0].values()) / weights
        raise DitQuantError(f"a budget of {bits:g} bits a weight is too small. Choose at least {least:.2f}.")
    usual = sum(_usual(found).noise for found in ways.values())
    front = tuple(_point(step, weights, usual) for step in path)
    rules = [Rule(n, None) if w.rule is None else replace(w.rule, target=n) for n, w in fitting[-1].items()]
    return Auto(Recipe(f"auto-{bits:g}", tuple(rules)), _point(fitting[-1], weights, usual), front)


def offers(rule: Rule) -> list[Rule]:
    """Return the ways that a rule's layer may be quantized; Twin-Log has nothing to add from 5 bits on.

    Both formats are compensated as the rule says: over inputs and outputs, over inputs, or not at all.
    """
    quantizer, options = rule.quantizer, dict(rule.quantizer_options)
    if quantizer in NEEDS_GRAM:
        options.pop("clip", None)
        twin, plain = (quantizer, options), (quantizer, options | {"clip": "mse"})
    else:
        twin, plain = ("twin_log", options if quantizer == "twin_log" else {}), ("rtn", {"clip": "mse"})
    made = [(WeightSpec(bits, "twin_log"), *twin) for bits in TWIN_LOG_BITS]
    made += [(WeightSpec(bits), *plain) for bits in AFFINE_BITS]
    return [replace(rule, weight=w, quantizer=name, quantizer_options=given) for w, name, given in made]


def measure(
    name: str,
    model: nn.Module,
    matched: Sequence[tuple[Layer, Rule]],
    run: Callable[[], object],
    seed: int,
    max_calls: int,
) -> dict[str, list[Way]]:
    """Return the ways of every layer; one that the prediction does not feel is stored as small as it can be.

    Transforms are chosen once, by the layer's own rule. Weights are compensated as they will be: over outputs too, that
    takes about six times as long, but it lowers errors at 3 and 4 bits to a fifth or a half, and those at 8 not at all.
    """
    rules, ways = {layer.name: rule for layer, rule in matched}, {}

    def make(layer: str, stats: Mapping[str, LayerStats]) -> QuantLinear:
        if layer not in stats:
            raise DitQuantError(f"calibration never reached {layer!r}, whose bits are to be chosen.")
        linear, seen = model.get_submodule(layer), stats[layer]
        rule = _settled(linear, layer, rules[layer], seen, seed)
        ways[layer] = [Way(None, linear.weight.numel() * FLOAT_BYTES, 0.0)]
        for offer in offers(rule):
            made = fit_layer(linear, layer, offer, seen, seed)
            noise = 0.0 if seen.curvature is None else output_noise(made, linear, seen)
            ways[layer].append(Way(offer, _bytes(made), noise))
        return made  # the last has 8 bits: blocks behind see what they would in full precision

    names = {layer.name: layer for layer, _ in matched}
    part = Part(name, model, names, set(names), set(names), make, seed, set(names))
    with TensorStore() as store:
        recordings = record_parts([part], run, store, max_calls)
        if name not in recordings:
            raise DitQuantError("bits can only be chosen for a model whose blocks can be run one by one.")
        quantize_blocks(part, recordings[name])
    return ways


def _settled(linear: nn.Linear, name: str, rule: Rule, stats: LayerStats, seed: int) -> Rule:
    """Return a rule with its transforms chosen."""
    basis = choose_basis(linear.weight.detach().float().cpu(), rule, stats, seed + zlib.crc32(name.encode()))
    return replace(rule, transforms=basis.chain, choose=replace(rule.choose, transforms=()))


def descend(ways: Mapping[str, Sequence[Way]]) -> list[dict[str, Way]]:
    """Return choices of rising size: at each, the bytes went where they lower the error most."""
    hulls = {name: hull(found) for name, found in ways.items()}
    choice = {name: found[0] for name, found in hulls.items()}
    steps = [
        ((a.noise - b.noise) / (b.size - a.size), name, b) for name, found in hulls.items() for a, b in pairwise(found)
    ]
    path = [dict(choice)]
    for _, name, way in sorted(steps, key=lambda step: -step[0]):
        choice[name] = way
        path.append(dict(choice))
    return path


def hull(ways: Sequence[Way]) -> list[Way]:
    """Return the lower convex hull of error over size, sizes rising and errors falling."""
    found: list[Way] = []
    for way in sorted(ways, key=lambda w: (w.size, w.noise)):
        if found and way.noise >= found[-1].noise:
            continue
        while len(found) > 1 and _slope(found[-2], way) <= _slope(found[-2], found[-1]):
            found.pop()
        found.append(way)
    return found


def _slope(a: Way, b: Way) -> float:
    return (b.noise - a.noise) / (b.size - a.size) if b.size > a.size else -math.inf


def _usual(ways: Sequence[Way]) -> Way:
    """The way that a front is told against: Twin-Log at 4 bits."""
    return next((w for w in ways if w.rule is not None and w.rule.weight == WeightSpec(4, "twin_log")), ways[-1])


def _point(choice: Mapping[str, Way], weights: int, usual: float) -> Point:
    noise = sum(way.noise for way in choice.values())
    level = 10 * math.log10(noise / usual) if noise > 0 and usual > 0 else -math.inf
    return Point(8 * sum(way.size for way in choice.values()) / weights, level)


def _bytes(layer: QuantLinear) -> int:
    return sum(p.numel() * p.element_size() for n, p in layer.named_parameters() if n != "bias")
