"""quantize(): every family in place, deterministic, atomic, and honest about what it cannot do."""

import copy

import pytest
import torch
from torch import nn

import ditquant
from ditquant.errors import DitQuantError
from ditquant.kernels import linear_reference
from ditquant.nn import QuantLinear
from tests.tiny import PROMPTS, TINY, inputs, paint, run, tiny, tiny_pixart_pipeline


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}


def relative_error(test, truth):
    return float(((test - truth).norm() / truth.norm()).detach())


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("recipe", ["lrq-w4a8", "rtn-w8a8"])
def test_every_family_quantizes_and_stays_close(name, recipe):
    model = tiny(name)
    truth = run(model)
    plan = ditquant.quantize(model, recipe, forward=run)
    assert set(plan.layers) == set(layers(model)) and plan.layers
    assert 0 < relative_error(run(model), truth) < (0.5 if recipe == "lrq-w4a8" else 0.05)


def test_calibrated_layer_follows_the_order_of_operations():
    """Smooth, rotate, quantize tokens, multiply by decoded weights: recomputed by hand from the stored parts."""
    model = tiny("pixart")
    ditquant.quantize(model, "lrq-w4a8", forward=run)
    layer = next(iter(layers(model).values()))
    salient = ditquant.transforms.TRANSFORMS["fast_dual_rotation"]
    assert layer.transforms[0].kind == "smooth"
    # a normed input has J = 1, which is the threshold
    assert layer.transforms[1].kind == "hadamard" or isinstance(layer.transforms[1], salient)
    x = torch.randn(3, 5, layer.in_features)
    hand = linear_reference(layer.transform(x), layer.packed(), layer.plan.activation, layer.bias)
    scale = layer.transform(x).abs().amax(-1, keepdim=True) / 127
    codes = torch.round(layer.transform(x) / scale)
    by_hand = (codes * scale) @ layer.packed().dequantize().T + layer.bias
    torch.testing.assert_close(hand, by_hand)
    assert relative_error(layer(x), by_hand) < 0.006  # the INT8 table's rounding


def test_original_basis_weight_is_what_the_layer_computes():
    model = tiny("pixart")
    before = copy.deepcopy(model)
    ditquant.quantize(model, "lrq-w4a16", forward=run)
    for name, layer in layers(model).items():
        x = torch.randn(4, layer.in_features)
        expected = nn.functional.linear(x, layer.dequantize(), layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        assert relative_error(layer.dequantize(), before.get_submodule(name).weight) < 0.2


def test_equal_arguments_give_equal_bits_and_seeds_differ():
    states = []
    for seed in (0, 0, 1):
        model = tiny("pixart")
        ditquant.quantize(model, "lrq-w4a4", forward=run, seed=seed)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_a_pipeline_is_calibrated_with_prompts():
    pipeline = tiny_pixart_pipeline()
    truth = paint(pipeline)
    plan = ditquant.quantize(pipeline, "lrq-w4a8", prompts=PROMPTS[:2])
    kinds = {t.kind for layer in plan.layers.values() for t in layer.transforms}
    assert "smooth" in kinds
    assert relative_error(torch.as_tensor(paint(pipeline)).float(), torch.as_tensor(truth).float()) < 0.5
    assert pipeline.transformer.config.quantization_config.plan.hash() == plan.hash()


def test_without_data_smoothing_is_left_out_and_said(caplog):
    plan = ditquant.quantize(tiny("pixart"), "lrq-w4a8")
    assert {t.kind for layer in plan.layers.values() for t in layer.transforms} == {"hadamard"}
    assert "data-free" in caplog.text


class Stack(nn.Module):
    """A model outside diffusers, in the manner of Open-Sora's STDiT."""

    def __init__(self, width=64):
        super().__init__()
        self.embed = nn.Linear(8, width)
        block = lambda: nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))  # noqa: E731
        self.blocks = nn.ModuleList(nn.ModuleDict({"mlp": block()}) for _ in range(3))
        self.head = nn.Linear(width, 8)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block["mlp"](x)
        return self.head(x)


def test_a_bare_module_outside_diffusers():
    model, x = Stack(), torch.randn(2, 16, 8)
    truth = model(x)
    plan = ditquant.quantize(model, "lrq-w4a8", forward=lambda m: m(x))
    assert len(plan.layers) == 6 and isinstance(model.embed, nn.Linear) and not isinstance(model.embed, QuantLinear)
    assert 0 < relative_error(model(x), truth) < 0.2


def test_bad_values_name_the_layer_and_change_nothing():
    model = tiny("pixart")
    victim = model.transformer_blocks[1].ff.net[2]
    victim.weight.data[3, 2] = float("nan")
    with pytest.raises(DitQuantError, match=r"transformer_blocks\.1\.ff\.net\.2"):
        ditquant.quantize(model, "lrq-w4a8", forward=run)
    assert not layers(model)
    victim.weight.data[3, 2] = 0
    model.transformer_blocks[0].norm1.bias = nn.Parameter(torch.full((32,), 3e38))  # overflows in what follows
    model.transformer_blocks[0].norm1.weight = nn.Parameter(torch.ones(32))
    with pytest.raises(DitQuantError, match=r"transformer_blocks\.0\.attn1"):
        ditquant.quantize(model, "lrq-w4a8", forward=run)
    assert not layers(model)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: ditquant.quantize(m, "lrq-w4a9"), "Did you mean"),
        (lambda m: ditquant.quantize(m, "lrq-w4a8", prompts=["a"]), "forward"),
        (lambda m: ditquant.quantize("model", "lrq-w4a8"), "pipeline"),
        (
            lambda m: ditquant.quantize(m, {"name": "x", "rules": [{"target": "nowhere.*", "weight": {"bits": 4}}]}),
            "nowhere",
        ),
        (
            lambda m: ditquant.quantize(
                m, {"name": "x", "rules": [{"target": "role:*", "weight": {"bits": 4, "group_size": 7}}]}
            ),
            "Divisors near it",
        ),
        (
            lambda m: ditquant.quantize(
                m, {"name": "x", "rules": [{"target": "role:*", "weight": {"bits": 4}, "quantizer": "gptqq"}]}
            ),
            "quantizer",
        ),
        (
            lambda m: ditquant.quantize(
                m, {"name": "x", "rules": [{"target": "role:*", "weight": {"bits": 4, "format": "afine"}}]}
            ),
            "affine",
        ),
        (
            lambda m: ditquant.quantize(
                m,
                {
                    "name": "x",
                    "rules": [
                        {
                            "target": "role:*",
                            "weight": {"bits": 4},
                            "activation": {"bits": 8, "granularity": "group", "group_size": 5},
                        }
                    ],
                },
            ),
            "Divisors near it",
        ),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(call, message):
    model = tiny("pixart")
    with pytest.raises(DitQuantError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value) and not layers(model)


def test_a_quantized_model_is_not_quantized_again():
    model = tiny("pixart")
    ditquant.quantize(model, "rtn-w4a8")
    with pytest.raises(DitQuantError, match="already"):
        ditquant.quantize(model, "rtn-w4a8")


def test_inputs_of_every_family_are_deterministic():
    """The comparisons above need it."""
    model = tiny("flux")
    assert all(
        torch.equal(a, b)
        for a, b in zip(inputs(model).values(), inputs(model).values(), strict=True)
        if isinstance(a, torch.Tensor)
    )
