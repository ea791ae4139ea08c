"""What a rule leaves open is decided by the measured error of the layer's output."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import ditquant
from ditquant.choice import Choice
from ditquant.fitting import Made, choose_basis, choose_clip, fit_layer, fit_transforms, quantize_weight
from ditquant.kernels import fake_quantize
from ditquant.nn import QuantLinear
from ditquant.rule import Rule
from ditquant.specs import ActSpec, TransformSpec, WeightSpec
from ditquant.stats import LayerStats
from tests.tiny import run, tiny
from tests.transforms.salient import salient, stats_of, weight

SMOOTH, HADAMARD, DUAL = (TransformSpec(kind) for kind in ("smooth", "hadamard", "fast_dual_rotation"))
CHAINS = ((), (HADAMARD,), (SMOOTH, HADAMARD), (SMOOTH, DUAL))
CLIPS = (0.6, 0.7, 0.8, 0.9, 1.0)


def rule(bits=4, acts=4, transforms=(), chains=(), clip=(), **changes):
    activation = None if acts is None else ActSpec(acts)
    return Rule(
        "*", WeightSpec(bits), activation=activation, transforms=transforms, choose=Choice(chains, clip), **changes
    )


def heavy(tokens=512, width=384) -> torch.Tensor:
    """Tokens with a large value here and there, which a clip had better cut off."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(tokens, width, generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.004, 6 * x, x)


def kinds(basis):
    return [t.kind for t in basis.transforms]


@pytest.mark.parametrize("make", [lambda: salient(512, 384), heavy, lambda: salient(512, 384, seed=4)])
def test_transforms_are_those_of_least_output_error(make):
    w, stats = weight(64, 384), stats_of(make())
    chosen = choose_basis(w, rule(chains=CHAINS[1:]), stats, 0)
    errors = {}
    for chain in CHAINS:
        alone = fit_transforms(w, chain, stats, 0)
        x = alone.stats.sample
        codes = quantize_weight(alone, rule()).packed.dequantize()
        got = fake_quantize(x, ActSpec(4)) @ codes.T
        errors[tuple(s.kind for s in chain)] = float((got - x @ alone.weight.T).double().square().sum())
    assert tuple(kinds(chosen)) == min(errors, key=errors.__getitem__)


def test_salient_channels_are_rotated_and_plain_ones_keep_the_rules_own():
    w = weight(64, 384)
    assert kinds(choose_basis(w, rule(chains=CHAINS[1:]), stats_of(salient(512, 384)), 0)) != []
    assert kinds(choose_basis(w.sign(), rule(chains=CHAINS[1:]), stats_of(heavy().sign()), 0)) == []


def test_the_clip_is_the_ratio_of_least_output_error():
    w, stats = weight(64, 384), stats_of(heavy())
    basis = fit_transforms(w, (), stats, 0)
    made = quantize_weight(basis, rule())
    found, error = choose_clip(made, basis, rule(clip=CLIPS))
    errors = {c: made.noise(basis, ActSpec(4, clip=c)) for c in CLIPS}
    assert found == ActSpec(4, clip=min(errors, key=errors.__getitem__)) and found.clip < 1
    assert error == min(errors.values())


def test_an_unclipped_range_is_kept_where_it_is_best():
    w, stats = weight(64, 384), stats_of(torch.sign(heavy()))
    basis = fit_transforms(w, (), stats, 0)
    assert choose_clip(quantize_weight(basis, rule()), basis, rule(clip=CLIPS))[0].clip == 1


def test_an_error_counts_as_far_as_the_prediction_feels_it():
    stats = LayerStats(3)
    stats.update(torch.eye(3))
    basis = fit_transforms(torch.eye(3), (), stats, 0)
    made = Made(quantize_weight(replace(basis, weight=torch.diag(torch.tensor([1.0, 2.0, 1.0]))), rule()).packed, None)
    assert made.noise(basis, None) == pytest.approx(1)
    stats.curvature = torch.diag(torch.tensor([1.0, 9.0, 1.0]))
    assert made.noise(basis, None) == pytest.approx(9)


def test_without_data_nothing_is_chosen():
    linear, open_rule = nn.Linear(384, 8), rule(transforms=(HADAMARD,), chains=CHAINS, clip=CLIPS)
    layer = fit_layer(linear, "layer", open_rule, None)
    assert [t.kind for t in layer.plan.transforms] == ["hadamard"] and layer.plan.activation == ActSpec(4)


def test_what_is_chosen_is_in_the_plan_and_nothing_else_is():
    linear, stats = nn.Linear(384, 64), stats_of(heavy())
    layer = fit_layer(linear, "layer", rule(chains=CHAINS[1:], clip=CLIPS, rank=4), stats)
    assert layer.plan.activation.clip in CLIPS and layer.plan.rank == 4
    assert [t.kind for t in layer.plan.transforms] in [[s.kind for s in chain] for chain in CHAINS]
    again = fit_layer(linear, "layer", rule(chains=CHAINS[1:], clip=CLIPS, rank=4), stats)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), again.state_dict().values(), strict=True))
    kept = fit_layer(linear, "layer", rule(acts=None, chains=CHAINS[1:], clip=CLIPS), stats)
    assert kept.plan.activation is None


def test_curvature_reaches_the_layers_that_ask_for_it():
    """Half the layers ask: their codes differ from those of plain GPTQ, and the others' do not in the first block."""
    made = {}
    for joint in (False, True):
        model = tiny("pixart")
        first = {"target": "role:ffn_*", "weight": {"bits": 3, "format": "twin_log"}, "quantizer": "gptq"}
        other = first | {"target": "role:*"}
        rules = [first | {"quantizer_options": {"joint": joint}}, other]
        ditquant.quantize(model, {"name": "x", "rules": rules}, forward=run)
        made[joint] = {n: m.codes for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    changed = {name for name in made[True] if not torch.equal(made[True][name], made[False][name])}
    assert "transformer_blocks.0.ff.net.2" in changed and "transformer_blocks.0.attn1.to_q" not in changed
