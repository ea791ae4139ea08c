"""A layer's error is that of its own outputs on what the reference's layer received; what stayed is named with why."""

import copy
import types

import pytest
import torch
from torch import nn

import ditquant
from ditquant.evaluation import inventory, layers
from ditquant.evaluation.inventory import BY_RECIPE, kept
from ditquant.evaluation.layers import LayerProbe
from ditquant.models import find_linears
from ditquant.models.coverage import OUTSIDE
from tests.tiny import run, tiny, tiny_pixart_pipeline

RECIPE = {
    "name": "some",
    "rules": [{"target": "role:ffn_*", "weight": {"bits": 4}}, {"target": "role:attn_q", "weight": {"bits": 8}}],
}


@pytest.fixture(scope="module")
def models():
    full = tiny("pixart")
    quantized = copy.deepcopy(full)
    ditquant.quantize(quantized, RECIPE)
    return full, quantized


def watch(full: nn.Module) -> LayerProbe:
    probe = LayerProbe()
    with probe.watching(full):
        run(full)
    return probe


def test_errors_are_those_of_all_inputs_computed_by_hand(models, monkeypatch):
    full, quantized = copy.deepcopy(models[0]), models[1]
    monkeypatch.setattr(layers, "ROWS", 10**6)
    found = {layer.name: layer for layer in watch(full).measure(quantized)}
    inputs = {}
    for name in found:
        full.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    run(full)
    assert len(found) == 6 and all(".ff." in name or name.endswith("to_q") for name in found)
    for name, layer in found.items():
        linear = full.get_submodule(name).double().requires_grad_(False)
        x, error = inputs[name].double(), quantized.get_submodule(name).dequantize().double() - linear.weight
        expected = 10 * torch.log10(linear(x).square().sum() / (x @ error.T).square().sum())
        assert layer.sqnr_db == pytest.approx(float(expected), abs=0.01)
        assert layer.parameters == linear.weight.numel()
        assert layer.format == f"{8 if 'to_q' in name else 4}-bit affine weights, floating-point activations"


def test_a_sample_is_kept(models):
    full, quantized = models
    probe = watch(full)
    assert all(len(x) == len(y) <= layers.ROWS for x, y in probe._seen.values())
    assert all(10 < layer.sqnr_db < 60 for layer in probe.measure(quantized))


def test_layers_that_the_reference_never_called_have_no_error(models):
    probe = LayerProbe()
    with probe.watching(models[0]):
        pass
    assert all(layer.sqnr_db is None for layer in probe.measure(models[1]))


def test_several_transformers_are_told_apart(models):
    full, quantized = models
    pair = types.SimpleNamespace(components={"transformer": quantized, "transformer_2": quantized, "vae": full})
    names = [layer.name for layer in LayerProbe().measure(pair)]
    assert len(names) == 12
    assert names[0].startswith("transformer.transformer_blocks.0")
    assert names[-1].startswith("transformer_2.transformer_blocks.1")


def test_what_stayed_and_why(models):
    full, quantized = models
    assert kept(full) == []
    groups = kept(quantized)
    by_reason = {(group.kind, group.reason): group for group in groups}
    recipe = by_reason["Linear", BY_RECIPE]
    assert recipe.modules == len(find_linears(full).layers) - 6
    assert (
        recipe.names == ("transformer_blocks.0.attn1.to_k", *recipe.names[1:]) and len(recipe.names) == inventory.NAMES
    )
    assert (
        "proj_out" in str(by_reason["Linear", OUTSIDE].names) or by_reason["Linear", OUTSIDE].modules > inventory.NAMES
    )
    weights = sum(p.numel() for p in full.parameters() if p.ndim >= 2)
    quantized_weights = sum(layer.parameters for layer in LayerProbe().measure(quantized))
    assert sum(group.parameters for group in groups) + quantized_weights == weights


def test_a_model_that_cannot_be_listed_says_so(models):
    quantized = copy.deepcopy(models[1])
    quantized.transformer_blocks[0].attn1.to_k = nn.ModuleDict({"lora_A": nn.Linear(2, 2)})
    (group,) = kept(quantized)
    assert "carries a LoRA adapter" in group.reason and group.modules == 1


def test_a_comparison_holds_layers_and_what_stayed(tmp_path):
    from ditquant.evaluation import Results, Sampling, compare

    def quantized():
        pipeline = tiny_pixart_pipeline()
        ditquant.quantize(pipeline, RECIPE)
        return pipeline

    results = compare(
        tiny_pixart_pipeline(),
        {"w4": quantized},
        ["a"],
        sampling=Sampling(steps=2),
        reference_name="full",
        progress=False,
    )
    reference, model = results.models
    assert reference.layers == reference.kept == []
    assert len(model.layers) == 6 and all(layer.sqnr_db > 5 for layer in model.layers)
    assert model.kept == kept(quantized())
    results.save(tmp_path / "results.json")
    again = Results.load(tmp_path / "results.json").models[1]
    assert again.layers == model.layers and again.kept == model.kept
