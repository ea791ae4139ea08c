"""Bits go where the prediction feels the error most, within the budget."""

import itertools
import math
from functools import partial

import pytest
import torch

import ditquant
from ditquant.auto import Way, choose, descend, hull, offers
from ditquant.auto import measure as measure_ways
from ditquant.engine import match
from ditquant.errors import DitQuantError
from ditquant.fitting import fit_layer, output_noise
from ditquant.quantizers import check_options
from ditquant.recipe import Recipe
from ditquant.rule import Rule
from ditquant.sizes import measure
from ditquant.specs import WeightSpec
from tests.cli.command import ditquant as command
from tests.cli.command import refused
from tests.tiny import run, tiny

RULE = Rule("x", WeightSpec(4))
BASE = {
    "name": "base",
    "rules": [{"target": "role:*", "weight": {"bits": 4, "format": "twin_log"}, "quantizer": "gptq"}],
}


def ways(*pairs):
    return [Way(RULE, size, noise) for size, noise in pairs]


def pairs(found):
    return [(way.size, way.noise) for way in found]


def test_a_hull_leaves_out_what_is_never_best():
    found = hull(ways((30, 9.0), (10, 100.0), (20, 60.0), (40, 10.0), (50, 0.0), (15, 100.0)))
    assert pairs(found) == [(10, 100), (30, 9), (50, 0)]
    assert pairs(hull(ways((10, 5.0), (10, 3.0), (20, 3.0)))) == [(10, 3)]


def test_every_point_of_the_front_is_the_best_of_its_size():
    layers = {
        "a": ways((1, 64.0), (2, 16.0), (3, 4.0), (5, 0.0)),
        "b": ways((1, 8.0), (2, 7.0), (3, 1.0)),
        "c": ways((2, 90.0), (4, 30.0), (6, 20.0)),
    }
    path = descend(layers)
    sizes = [sum(w.size for w in point.values()) for point in path]
    noises = [sum(w.noise for w in point.values()) for point in path]
    assert sizes == sorted(sizes) and noises == sorted(noises, reverse=True)
    every = [(sum(w.size for w in c), sum(w.noise for w in c)) for c in itertools.product(*layers.values())]
    for size, noise in zip(sizes, noises, strict=True):
        assert noise == min(n for s, n in every if s <= size)
    assert (sizes[0], sizes[-1]) == (4, 14)


def chosen(bits, **options):
    return choose(tiny("pixart"), bits, forward=run, base=BASE, **options)


def test_a_budget_is_kept_and_more_of_it_is_better():
    errors = []
    for bits in (5.0, 7.0, 10.0):
        found, model = chosen(bits), tiny("pixart")
        assert found.chosen in found.front and found.chosen.bits <= bits < 1 + found.chosen.bits
        truth = run(model)
        ditquant.quantize(model, found.recipe, forward=run)
        errors.append(float((run(model) - truth).norm()))
        assert len({rule.weight for rule in found.recipe.rules}) > 1
    assert errors == sorted(errors, reverse=True)


def test_the_size_foreseen_is_that_of_the_model():
    found, model = chosen(6.0), tiny("pixart")
    plan = ditquant.quantize(model, found.recipe, forward=run)
    biases = sum(2 * 16 * model.get_submodule(name).out_features for name in plan.layers)
    kept = 16 * sum(model.get_submodule(r.target).weight.numel() for r in found.recipe.rules if r.weight is None)
    size = measure(model)
    total = sum(model.get_submodule(r.target).weight.numel() for r in found.recipe.rules)
    assert (8 * size.layer_bytes - biases + kept) / total == pytest.approx(found.chosen.bits, rel=1e-6)


JOINT = {"quantizer": "gptq", "quantizer_options": {"joint": True}}


@pytest.mark.parametrize(
    ("rule", "twin", "plain"),
    [
        (JOINT, ("gptq", {"joint": True}), ("gptq", {"joint": True})),
        ({"quantizer": "gptq", "quantizer_options": {"clip": "mse"}}, ("gptq", {}), ("gptq", {})),
        (
            {"quantizer": "twin_log", "quantizer_options": {"search": "fit"}},
            ("twin_log", {"search": "fit"}),
            ("rtn", {}),
        ),
        ({"quantizer": "rtn"}, ("twin_log", {}), ("rtn", {})),
    ],
)
def test_both_formats_are_compensated_as_the_rule_says(rule, twin, plain):
    found = offers(Rule("x", WeightSpec(4), **rule))
    assert [(o.weight.format, o.weight.bits) for o in found[2:4]] == [("twin_log", 4), ("affine", 3)]
    for offer in found:
        (quantizer, options), clip = (twin, {}) if offer.weight.format == "twin_log" else (plain, {"clip": "mse"})
        assert (offer.quantizer, offer.quantizer_options) == (quantizer, options | clip)
        check_options(offer.quantizer, offer.quantizer_options)


def test_what_is_measured_is_what_is_deployed(monkeypatch):
    """Compensation over outputs too, which makes some ways better and others not."""
    measured = {}

    def fit(linear, name, rule, stats, seed):
        made = fit_layer(linear, name, rule, stats, seed)
        measured.setdefault(name, []).append((rule, output_noise(made, linear, stats)))
        return made

    monkeypatch.setattr("ditquant.auto.ways.fit_layer", fit)
    model = tiny("pixart")
    matched = match(model, Recipe.load(BASE | {"rules": [BASE["rules"][0] | JOINT]}))
    with torch.no_grad():
        ways = measure_ways("", model, matched, partial(run, model), 0, 16)
    for name, found in ways.items():
        assert [(way.rule, way.noise) for way in found[1:]] == measured[name]
        assert all(way.rule.quantizer_options["joint"] for way in found[1:])


def test_a_layer_that_is_not_felt_gets_the_fewest_bytes():
    model = tiny("pixart")
    with torch.no_grad():  # what the cross-attention of the last block says is multiplied by zero
        model.transformer_blocks[1].attn2.to_out[0].weight.zero_()
    found = choose(model, 6.0, forward=run, base=BASE)
    rule = next(r for r in found.recipe.rules if r.target == "transformer_blocks.1.attn2.to_v")
    assert rule.weight == WeightSpec(3)  # two Twin-Log bits and five parameters a row of 32 are more


def test_the_front_is_told_against_four_bits_and_ends_in_floating_point():
    front = chosen(8.0).front
    assert [p.bits for p in front] == sorted(p.bits for p in front)
    assert front[0].noise_db > 0 and front[-1].noise_db == -math.inf and front[-1].bits == 16


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(DitQuantError, match=r"budget of 1 bits a weight is too small\. Choose at least"):
        chosen(1.0)
    with pytest.raises(DitQuantError, match="choosing bits needs calibration"):
        choose(tiny("pixart"), 4.0)
    with pytest.raises(DitQuantError, match="blocks can be run one by one"):
        choose(tiny("latte"), 4.0, forward=run, base=BASE)


def test_the_command_says_what_is_missing(tmp_path):
    words = ("quantize", "pixart-shapes", "-o", tmp_path / "out")
    refused(command(*words, "--recipe", "auto"), "--recipe auto needs a budget and calibration")
    refused(command(*words, "--recipe", "lrq-w4a8", "--bits", 3), "--bits is the budget of --recipe auto")
