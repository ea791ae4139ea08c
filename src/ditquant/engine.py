"""The engine: match a recipe to a model's layers, see their inputs, fit, quantize, and swap the layers in place."""

import logging
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from ditquant import distributed
from ditquant.attention import AttentionPlan
from ditquant.attention.kinds import kind_of
from ditquant.calibration import (
    MAX_CALLS,
    Part,
    PromptRun,
    TensorStore,
    WorkFolder,
    announce,
    check_max_calls,
    check_weights,
    describe_models,
    quantize_blocks,
    quantize_one_pass,
    record_parts,
)
from ditquant.calibration.attention import fit_runs
from ditquant.effort import fit_seconds
from ditquant.errors import DitQuantError, of_layer
from ditquant.fitting import fit_layer
from ditquant.formats import FORMATS
from ditquant.groups import check_some_fit, fit_to, say_fitted
from ditquant.integrations.attention import attend_by, entry, plan_of
from ditquant.integrations.diffusers import mark_quantized, transformers_of
from ditquant.models import Layer, find_linears
from ditquant.nn import QuantLinear, set_module
from ditquant.on_disk import held
from ditquant.pipelines import conditions, settings_of
from ditquant.quantizers import NEEDS_GRAM, check_options, reads_curvature, reads_data
from ditquant.recipe import Recipe, Rule
from ditquant.specs import QuantPlan, check_divides, prompt_hash
from ditquant.stats import LayerStats
from ditquant.transforms.fitters import check_fit_options, check_width

log = logging.getLogger(__name__)
MAX_SEED = 2**62  # what is added to it for prompts and layers stays below torch's limit


@torch.no_grad()
def quantize(
    model: Any,
    recipe: str | Mapping[str, Any] | Recipe,
    *,
    prompts: Sequence[str | int] | None = None,
    forward: Callable[[nn.Module], object] | None = None,
    seed: int = 0,
    work_dir: str | os.PathLike | None = None,
    max_calls: int = MAX_CALLS,
    settings: Mapping[str, float | None] | None = None,
    recorded_bytes: int | None = None,
) -> QuantPlan:
    """Quantize a diffusers pipeline's transformers, or any module, in place; return what was decided.

    `prompts` (pipelines) are generated once to calibrate, with `settings` (steps, guidance, height, width, frames)
    where they differ from the pipeline's defaults; for a module, `forward(model)` runs it on representative inputs.
    A recipe with `attention` runs the prompts again, in full precision, to choose orders and tiles.
    `max_calls` calls of the blocks, spread over the trajectory, are recorded, and block after block is fitted to what
    the quantized blocks before it make of them. Without prompts and forward, whatever needs data is left out of the
    recipe: no smoothing, Hadamard rotation for every layer, and a plain weight fit. Equal arguments give equal bits
    on one machine with one number of threads. Nothing is changed if an error is raised.

    Recorded calls take up to `recorded_bytes` of memory, 2 GiB by default, and lie on disk beyond it.

    `work_dir` keeps what is finished: killed and called again with equal arguments (an equal `forward` is up to the
    caller), the run goes on at the block where it was, and ends with the same bits. Delete the folder afterwards.

    Ranks (`ditquant.distributed`) share the prompts; each ends with all layers, equal to the bit to those of one.

    Returns:
        The plan; for a pipeline with several transformers the names start with the component's.

    Raises:
        DitQuantError: an unknown recipe, no layer that it matches, NaN or infinite parameters or inputs (names the
            tensor or the layer), a group size that divides no layer's width, a model that is already quantized or not
            loaded, a calibration that does not reach the model, a work folder of another run.
    """
    recipe, seed = Recipe.load(recipe), _check_seed(seed)
    if prompts is not None and not isinstance(prompts, str | Mapping):
        prompts = list(prompts)
    parts_of = transformers_of(model)
    matched = {name: match(part, recipe) for name, part in parts_of.items()}
    if fitted := say_fitted(recipe.match, chain.from_iterable(matched.values())):
        log.warning("the recipe is fitted to the widths of its layers: %s", fitted)
    settings = {name: value for name, value in (settings or {}).items() if value is not None}
    run = runner(model, prompts, forward, seed, settings)
    check_max_calls(max_calls)
    if recipe.attention is not None and run is not None:
        for part in parts_of.values():
            kind_of(part)  # a class without a processor is refused before anything runs
    if work_dir is not None:
        check_alone()
    chosen = {"recipe": recipe.makes(), "prompts": prompts, "forward": forward is not None, "seed": seed}
    chosen |= {"settings": settings, "max_calls": max_calls}
    missed: list[str] | None = [] if run else None
    parts = [_part(name, part, matched[name], seed, missed) for name, part in parts_of.items()]
    made = _fit_layers(model, parts, run, max_calls, work_dir, chosen, recorded_bytes) if recipe.rules else {}
    if missed:
        log.warning(
            "calibration never reached %d layers, which are quantized data-free: %s%s",
            len(missed),
            ", ".join(missed[:4]),
            ", ..." if len(missed) > 4 else "",
        )
    attention = _fit_attention(parts_of, recipe, run)
    for name, plan in attention.items():
        attend_by(parts_of[name], plan)
    plans = {
        part.name: _swap(part, made.get(part.name, {}), recipe, _texts(part, prompts), attention.get(part.name))
        for part in parts
    }
    if len(plans) == 1:
        return next(iter(plans.values()))
    layers = {f"{p}.{n}": e for p, plan in plans.items() for n, e in plan.layers.items()}
    calibration = max((plan.calibration for plan in plans.values()), key=len)
    return QuantPlan(layers, recipe.name, calibration=calibration, thresholds=recipe.thresholds)


def _fit_layers(
    model: Any,
    parts: Sequence[Part],
    run: Callable[[], object] | None,
    max_calls: int,
    work_dir: Any,
    chosen: dict,
    recorded_bytes: int | None,
) -> dict[str, dict[str, QuantLinear]]:
    if run is None and any(part.data for part in parts):
        log.warning(
            "no calibration prompts: recipe %r runs data-free, without smoothing and salient rotations",
            chosen["recipe"]["name"],
        )
    work = None if work_dir is None else WorkFolder(work_dir, describe_models(model, transformers_of(model)) | chosen)
    made: dict[str, dict[str, QuantLinear]] = {}
    announce(parts, run, max_calls, recorded_bytes)
    with TensorStore(recorded_bytes) as store:
        recordings = {} if run is None else record_parts(parts, run, store, max_calls, work)
        for part in parts:
            if part.name in recordings:
                made[part.name] = quantize_blocks(part, recordings[part.name], work)
            else:
                made[part.name] = quantize_one_pass(part, run, work)
    return made


def _fit_attention(
    models: Mapping[str, nn.Module], recipe: Recipe, run: Callable[[], object] | None
) -> dict[str, AttentionPlan]:
    """Fit the plan of every transformer while all of them run in full precision."""
    if recipe.attention is None:
        return {}
    if run is None:
        if not recipe.rules:
            raise DitQuantError("attention is fitted to prompts. Give prompts= (a pipeline) or forward= (a module).")
        log.warning("no calibration prompts: the attention of recipe %r stays dense", recipe.name)
        return {}
    return {name: fit_runs(model, run, recipe.attention).plan for name, model in models.items()}


def check_alone() -> None:
    """Refuse a work folder for several processes."""
    if distributed.count() > 1:
        raise DitQuantError("a work folder is for one process, this run has several. Leave it out, or start one.")


def _check_seed(seed: Any) -> int:
    """Return a seed as an integer; numpy's integers are welcome."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number <= MAX_SEED:
        raise DitQuantError(f"seed {seed!r} is not allowed. Choose an integer from 0 to {MAX_SEED}.")
    return number


def match(model: nn.Module, recipe: Recipe) -> list[tuple[Layer, Rule]]:
    """Pair the layers that a recipe quantizes with their rules; reads no values, so meta modules do too.

    A layer whose width a group size does not divide has the largest groups below that do (see `fit_groups`), a narrow
    one a smaller rank.

    Raises:
        DitQuantError: no layer matches, a pattern matches none, a group size or a rank fits no layer and the recipe is
            not for any width, the model is quantized.
    """
    if any(isinstance(m, QuantLinear) for m in model.modules()):
        raise DitQuantError("the model is quantized already. Load the full-precision one.")
    if plan_of(model) is not None:
        raise DitQuantError("the model attends by a plan already. Load the full-precision one.")
    layers = find_linears(model).layers
    recipe.check_patterns([(layer.name, layer.role) for layer in layers])
    found = [(layer, recipe.match(layer.role, layer.name)) for layer in layers]
    rules = [(layer, rule) for layer, rule in found if rule is not None and rule.weight is not None]
    if not recipe.any_width:
        check_some_fit(rules)
    rules = [(layer, fit_to(layer, rule)) for layer, rule in rules]
    for layer, rule in rules:
        check_rule(rule, layer)
    return rules


def check_rule(rule: Rule, layer: Layer) -> None:
    """Refuse what would fail for this layer later: unknown parts and options, and what does not fit its width."""
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
    for transform in chain.from_iterable(rule.chains):
        check_fit_options(transform.kind, transform.options)
        with of_layer(layer.name):
            check_width(transform.kind, layer.in_features, transform.options)


def uses_data(rule: Rule) -> bool:
    """Say whether calibration changes what a rule makes."""
    return bool(rule.transforms or rule.rank or rule.choose) or reads_data(rule.quantizer, rule.quantizer_options)


def quantize_layer(
    linear: nn.Linear, layer: Layer, rule: Rule, stats: Mapping[str, LayerStats], seed: int = 0
) -> QuantLinear:
    """Fit a layer as its rule says; an error names the layer."""
    with of_layer(layer.name):
        return fit_layer(linear, layer.name, rule, stats.get(layer.name), seed)


def runner(model, prompts, forward, seed, settings) -> Callable[[], object] | None:
    """Return what runs the model on its calibration data; None without data."""
    if prompts is not None and forward is not None:
        raise DitQuantError("give either prompts (for a pipeline) or forward (for a module), not both.")
    if prompts is not None and isinstance(model, nn.Module):
        raise DitQuantError("prompts need a pipeline. For a bare module pass forward=, a function that calls it.")
    if forward is not None and not isinstance(model, nn.Module):
        raise DitQuantError("forward is for a bare module. For a pipeline pass prompts=, a list of texts.")
    if prompts is not None:
        conditions(model, prompts)
        settings_of(model, **settings)
        return PromptRun(model, prompts, seed, settings)
    if settings:
        raise DitQuantError("settings are for a pipeline's prompts. Give prompts=, or leave settings out.")
    return None if forward is None else partial(forward, model)


def _part(
    name: str, model: nn.Module, matched: Sequence[tuple[Layer, Rule]], seed: int, missed: list[str] | None
) -> Part:
    check_weights(model, [layer for layer, _ in matched])
    rules = {layer.name: (layer, rule) for layer, rule in matched}
    data = {layer.name for layer, rule in matched if uses_data(rule)}

    def make(layer_name: str, stats: Mapping[str, LayerStats]) -> QuantLinear:
        if missed is not None and layer_name in data and layer_name not in stats:
            missed.append(layer_name)
        linear = model.get_submodule(layer_name)
        with held(linear):
            return quantize_layer(linear, *rules[layer_name], stats, seed)

    grams = [layer.name for layer, rule in matched if rule.quantizer in NEEDS_GRAM]
    curved = [layer.name for layer, rule in matched if reads_curvature(rule.quantizer_options)]
    seen = missed is not None  # without data to calibrate with no layer has statistics
    effort = {x.name: fit_seconds(rule, x.out_features, x.in_features, seen) for x, rule in matched}
    return Part(name, model, {layer.name: layer for layer, _ in matched}, data, grams, make, seed, curved, effort)


def _texts(part: Part, prompts: Any) -> list[str]:
    """Return the prompts that a part was fitted to: none for class labels, or where no layer needs data."""
    texts = [prompts] if isinstance(prompts, str) else prompts or []
    return [text for text in texts if isinstance(text, str)] if part.data else []


def _swap(
    part: Part,
    made: Mapping[str, QuantLinear],
    recipe: Recipe,
    prompts: Sequence[str],
    attention: AttentionPlan | None,
) -> QuantPlan:
    for name, layer in part.layers.items():
        for alias in (name, *layer.aliases):
            set_module(part.model, alias, made[name])
    layers = {name: made[name].plan for name in part.layers}
    hashes = tuple(sorted({prompt_hash(text) for text in prompts}))
    attended = None if attention is None else entry(attention)
    plan = QuantPlan(layers, recipe.name, attended, calibration=hashes, thresholds=recipe.thresholds)
    mark_quantized(part.model, plan)
    return plan
