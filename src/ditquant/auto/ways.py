"""The ways that a layer may be stored in, and what each costs: bytes, its share of the error, milliseconds.

A layer is quantized in every way that is offered, on its own inputs. The error that its output then has on the sample,
weights and activations together, in the metric of the output's curvature, is its share of the prediction's error; these
shares add up (errors of different layers are nearly independent).
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from ditquant.auto.clock import Clock
from ditquant.auto.front import Way
from ditquant.auto.kept import load_ways, save_ways
from ditquant.calibration import Part, TensorStore, WorkFolder, announce, quantize_blocks, record_parts
from ditquant.effort import fit_seconds
from ditquant.errors import DitQuantError
from ditquant.fitting import choose_basis, fit_layer, output_noise
from ditquant.models import Layer
from ditquant.nn import QuantLinear
from ditquant.quantizers import NEEDS_GRAM
from ditquant.recipe import Rule
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats

BASE = "lrq-plus-lean-w4a8"
TWIN_LOG_BITS = (2, 3, 4)
AFFINE_BITS = (3, 4, 5, 6, 8)
FLOAT_BYTES = 2


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
    clock: Clock | None = None,
    work: WorkFolder | None = None,
) -> dict[str, list[Way]]:
    """Return the ways of every layer; one that the prediction does not feel is stored as small as it can be.

    Transforms are chosen once, by the layer's own rule. Weights are compensated as they will be: over outputs too, that
    takes about six times as long, but it lowers errors at 3 and 4 bits to a fifth or a half, and those at 8 not at all.
    With a clock the ways have milliseconds, of one call of the model. A work folder keeps those of every layer.
    """
    names = {layer.name: layer for layer, _ in matched}
    rules = {layer.name: rule for layer, rule in matched}
    ways = {} if work is None else load_ways(work.path, names, clock)
    if ways.keys() == names.keys():
        return ways

    def make(layer: str, stats: Mapping[str, LayerStats]) -> QuantLinear:
        if layer not in stats:
            raise DitQuantError(f"calibration never reached {layer!r}, whose bits are to be chosen.")
        linear, seen = model.get_submodule(layer), stats[layer]
        rule = _settled(linear, layer, rules[layer], seen, seed)
        offered = offers(rule)
        made = [fit_layer(linear, layer, offer, seen, seed) for offer in offered]
        found = [Way(None, linear.weight.numel() * FLOAT_BYTES, 0.0)]
        for offer, one in zip(offered, made, strict=True):
            noise = 0.0 if seen.curvature is None else output_noise(one, linear, seen)
            found.append(Way(offer, _bytes(one), noise))
        if clock is not None:
            times = clock.ms(linear, made, -(-seen.count // seen.updates))
            found = [replace(way, ms=ms) for way, ms in zip(found, times, strict=True)]
        ways[layer] = found
        if work is not None:
            save_ways(work.path, layer, found, clock)
        return made[-1]  # it has 8 bits: blocks behind see what they would in full precision

    effort = {layer.name: _effort(layer, rule) for layer, rule in matched}
    part = Part(name, model, names, set(names), set(names), make, seed, set(names), effort)
    announce([part], run, max_calls)
    with TensorStore() as store:
        recordings = record_parts([part], run, store, max_calls, work)
        if name not in recordings:
            raise DitQuantError("bits can only be chosen for a model whose blocks can be run one by one.")
        made = quantize_blocks(part, recordings[name], work)
    if work is not None and made.keys() - ways.keys():  # a file of a finished block is lost
        work.forget()
        return measure(name, model, matched, run, seed, max_calls, clock, work)
    return ways


def _effort(layer: Layer, rule: Rule) -> float:
    """Return about how long a layer takes in all ways."""
    settled = replace(rule, choose=replace(rule.choose, transforms=()))
    size = (layer.out_features, layer.in_features)
    return fit_seconds(rule, *size) + sum(fit_seconds(offer, *size) for offer in offers(settled))


def _settled(linear: nn.Linear, name: str, rule: Rule, stats: LayerStats, seed: int) -> Rule:
    """Return a rule with its transforms chosen."""
    weight = linear.weight.detach().float().cpu()
    basis = choose_basis(weight, rule, stats, seed + zlib.crc32(name.encode()))
    return replace(rule, transforms=basis.chain, choose=replace(rule.choose, transforms=()))


def _bytes(layer: QuantLinear) -> int:
    return sum(p.numel() * p.element_size() for n, p in layer.named_parameters() if n != "bias")
