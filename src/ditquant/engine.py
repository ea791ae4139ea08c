"""The engine: match a recipe to a model's layers, see their inputs, fit, quantize, and swap the layers in place."""

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ditquant.calibration import collect, run_prompts
from ditquant.errors import DitQuantError
from ditquant.formats import FORMATS
from ditquant.integrations.diffusers import mark_quantized, transformers_of
from ditquant.models import Layer, find_linears
from ditquant.nn import LowRank, QuantLinear, set_module
from ditquant.progress import bar as progress_bar
from ditquant.quantizers import DATA_FREE, QUANTIZERS, check_options
from ditquant.quantizers.low_rank import fit_low_rank
from ditquant.recipe import Recipe, Rule
from ditquant.specs import LayerPlan, QuantPlan, check_divides
from ditquant.stats import LayerStats
from ditquant.transforms.fitters import FITTERS, check_fit_options, needs_data, takes_seed

log = logging.getLogger(__name__)


@torch.no_grad()
def quantize(
    model: Any,
    recipe: str | Mapping[str, Any] | Recipe,
    *,
    prompts: Sequence[str | int] | None = None,
    forward: Callable[[nn.Module], object] | None = None,
    seed: int = 0,
) -> QuantPlan:
    """Quantize a diffusers pipeline's transformers, or any module, in place; return what was decided.

    `prompts` (pipelines) are generated once at the pipeline's default settings to calibrate; for a module,
    `forward(model)` runs it on representative inputs. Without either, whatever needs data is left out of the recipe:
    no smoothing, Hadamard rotation for every layer, and a plain weight fit. Equal arguments give equal bits. Nothing
    is changed if an error is raised.

    Returns:
        The plan; for a pipeline with several transformers the names start with the component's.

    Raises:
        DitQuantError: an unknown recipe, no layer that it matches, NaN or infinite weights or inputs (names the layer),
            a group size that does not divide a width, a model that is already quantized or not loaded.
    """
    recipe = Recipe.load(recipe)
    parts = transformers_of(model)
    matched = {name: match(part, recipe) for name, part in parts.items()}
    stats = _calibrate(model, parts, matched, prompts, forward, seed)
    if stats is None and any(uses_data(r) for rules in matched.values() for _, r in rules):
        log.warning(
            "no calibration prompts: recipe %r runs data-free, without smoothing and salient rotations", recipe.name
        )
    total = sum(len(rules) for rules in matched.values())
    swaps: dict[str, dict[str, QuantLinear]] = {}
    with progress_bar(total=total, desc="quantizing", unit="layer") as bar:
        for name, part in parts.items():
            seen = {} if stats is None else stats[name]
            swaps[name] = {}
            for layer, rule in matched[name]:
                swaps[name][layer.name] = quantize_layer(part.get_submodule(layer.name), layer, rule, seen, seed)
                bar.update()
    plans = {name: _swap(parts[name], matched[name], swaps[name], recipe) for name in parts}
    if len(plans) == 1:
        return next(iter(plans.values()))
    return QuantPlan({f"{p}.{n}": e for p, plan in plans.items() for n, e in plan.layers.items()}, recipe.name)


def match(model: nn.Module, recipe: Recipe) -> list[tuple[Layer, Rule]]:
    """Pair the layers that a recipe quantizes with their rules; reads no values, so meta modules do too.

    Raises:
        DitQuantError: no layer matches, a pattern matches none, a group size does not divide, the model is quantized.
    """
    if any(isinstance(m, QuantLinear) for m in model.modules()):
        raise DitQuantError("the model is quantized already. Load the full-precision one.")
    layers = find_linears(model).layers
    recipe.check_patterns([(layer.name, layer.role) for layer in layers])
    found = [(layer, recipe.match(layer.role, layer.name)) for layer in layers]
    rules = [(layer, rule) for layer, rule in found if rule is not None and rule.weight is not None]
    for layer, rule in rules:
        check_rule(rule, layer)
    return rules


def check_rule(rule: Rule, layer: Layer) -> None:
    """Refuse what would fail for this layer later: unknown parts and options, groups that do not divide its width."""
    FORMATS[rule.weight.format]
    rule.weight.groups(layer.in_features, layer.name)
    if rule.activation is not None and rule.activation.group_size is not None:
        check_divides(rule.activation.group_size, layer.in_features, layer.name)
    check_options(rule.quantizer, rule.quantizer_options)
    if rule.rank > min(layer.in_features, layer.out_features):
        raise DitQuantError(
            f"rank {rule.rank} is too large for {layer.name!r} ({layer.in_features} -> {layer.out_features}). "
            f"Choose at most {min(layer.in_features, layer.out_features)}."
        )
    for transform in rule.transforms:
        check_fit_options(transform.kind, transform.options)


def uses_data(rule: Rule) -> bool:
    """Say whether calibration changes what a rule makes."""
    return bool(rule.transforms) or rule.quantizer not in DATA_FREE


def quantize_layer(
    linear: nn.Linear, layer: Layer, rule: Rule, stats: Mapping[str, LayerStats], seed: int = 0
) -> QuantLinear:
    """Fit the rule's transforms one after the other, quantize what they make of the weight, and build the module."""
    weight = linear.weight.detach().float().cpu()
    seen = stats.get(layer.name)
    transforms = []
    for spec in rule.transforms:
        if seen is None and needs_data(spec.kind):
            continue
        options = {"seed": seed + zlib.crc32(layer.name.encode())} if takes_seed(spec.kind) else {}
        transform = FITTERS[spec.kind](weight, seen, **options | dict(spec.options))
        weight = transform.absorb(weight)
        seen = None if seen is None else seen.transformed(transform)
        transforms.append(transform)
    quantizer = partial(QUANTIZERS[rule.quantizer], spec=rule.weight, stats=seen, **rule.quantizer_options)
    if rule.rank:
        packed, down, up = fit_low_rank(weight, rule.rank, quantizer, seen)
        low_rank = LowRank(down, up)
    else:
        packed, low_rank = quantizer(weight), None
    plan = LayerPlan(rule.weight, rule.activation, tuple(t.spec() for t in transforms), rule.rank)
    return QuantLinear.from_linear(linear, packed, transforms, plan, low_rank)


def _calibrate(model, parts, matched, prompts, forward, seed) -> dict[str, dict[str, LayerStats]] | None:
    """Statistics by part and layer; None without data."""
    if prompts is not None and forward is not None:
        raise DitQuantError("give either prompts (for a pipeline) or forward (for a module), not both.")
    if prompts is not None and isinstance(model, nn.Module):
        raise DitQuantError("prompts need a pipeline. For a bare module pass forward=, a function that calls it.")
    if forward is not None and not isinstance(model, nn.Module):
        raise DitQuantError("forward is for a bare module. For a pipeline pass prompts=, a list of texts.")
    for name, part in parts.items():
        _check_weights(part, [layer for layer, _ in matched[name]])
    if prompts is None and forward is None:
        return None
    watched = {
        f"{name}:{layer.name}": part.get_submodule(layer.name)
        for name, part in parts.items()
        for layer, rule in matched[name]
        if uses_data(rule)
    }
    run = (lambda: run_prompts(model, prompts, seed)) if forward is None else (lambda: forward(model))
    seen = collect(watched, run, seed=seed)
    return {p: {n.partition(":")[2]: s for n, s in seen.items() if n.partition(":")[0] == p} for p in parts}


def _check_weights(model: nn.Module, layers: Sequence[Layer]) -> None:
    for layer in layers:
        weight = model.get_submodule(layer.name).weight
        if weight.is_meta:
            raise DitQuantError(
                f"the weight of {layer.name!r} is not loaded. Quantize before offloading, on the CPU or one device."
            )
        if not bool(torch.isfinite(weight).all()):
            raise DitQuantError(f"the weight of {layer.name!r} holds NaN or infinite values. Check the checkpoint.")


def _swap(
    model: nn.Module, matched: list[tuple[Layer, Rule]], swaps: Mapping[str, QuantLinear], recipe: Recipe
) -> QuantPlan:
    for layer, _ in matched:
        for name in (layer.name, *layer.aliases):
            set_module(model, name, swaps[layer.name])
    plan = QuantPlan({name: new.plan for name, new in swaps.items()}, recipe.name)
    mark_quantized(model, plan)
    return plan
