"""quantize() refuses in Python what the command line refuses: one line, and the model stays as it was."""

import numpy as np
import pytest
import torch
from torch import nn

import ditquant
from ditquant.errors import DitQuantError
from ditquant.nn import QuantLinear
from tests.tiny import PROMPTS, run, tiny, tiny_pixart_pipeline


def recipe(**rule):
    return {"name": "mine", "rules": [{"target": "role:*", "weight": {"bits": 4}} | rule]}


MODULE = {
    "unknown recipe 'rtn-w9a8'": lambda m: ditquant.quantize(m, "rtn-w9a8"),
    "'none.yaml' does not exist": lambda m: ditquant.quantize(m, "none.yaml"),
    "unknown key of rule 1 of a recipe 'quantiser'": lambda m: ditquant.quantize(m, recipe(quantiser="rtn")),
    "weight bits 9 are not allowed": lambda m: ditquant.quantize(m, recipe(weight={"bits": 9})),
    "weight bits True are not allowed": lambda m: ditquant.quantize(m, recipe(weight={"bits": True})),
    "quantizes none of the model's 20": lambda m: ditquant.quantize(m, recipe(target="role:modulation")),
    "not both": lambda m: ditquant.quantize(m, "rtn-w4a8", prompts=["a"], forward=run),
    "reached none of the 20 layers": lambda m: ditquant.quantize(m, "lrq-w4a8", forward=lambda _: None),
    "settings are for a pipeline's": lambda m: ditquant.quantize(m, "lrq-w4a8", forward=run, settings={"steps": 2}),
}
PIPELINE = {
    "at least one prompt": lambda p: ditquant.quantize(p, "lrq-w4a8", prompts=[]),
    "must be a list": lambda p: ditquant.quantize(p, "lrq-w4a8", prompts="a fox"),
    "needs prompts of text, got 3": lambda p: ditquant.quantize(p, "lrq-w4a8", prompts=[3]),
    "forward is for a bare module": lambda p: ditquant.quantize(p, "lrq-w4a8", forward=run),
    "unknown setting 'step'": lambda p: ditquant.quantize(p, "lrq-w4a8", prompts=["a"], settings={"step": 2}),
    "takes no frames": lambda p: ditquant.quantize(p, "lrq-w4a8", prompts=["a"], settings={"frames": 2}),
    "steps 0 is not allowed": lambda p: ditquant.quantize(p, "lrq-w4a8", prompts=["a"], settings={"steps": 0}),
    "guidance nan is not allowed": lambda p: ditquant.quantize(
        p, "lrq-w4a8", prompts=["a"], settings={"guidance": float("nan")}
    ),
    "does not take these settings": lambda p: ditquant.quantize(p, "lrq-w4a8", prompts=["a"], settings={"height": 13}),
}


def quantized_layers(model: nn.Module) -> int:
    return sum(isinstance(m, QuantLinear) for m in model.modules())


@pytest.mark.parametrize("message", MODULE)
def test_a_module(message):
    model = tiny("pixart")
    with pytest.raises(DitQuantError) as error:
        MODULE[message](model)
    assert message in str(error.value) and "\n" not in str(error.value) and not quantized_layers(model)


@pytest.mark.parametrize("message", PIPELINE)
def test_a_pipeline(message):
    pipeline = tiny_pixart_pipeline()
    with pytest.raises(DitQuantError) as error:
        PIPELINE[message](pipeline)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not quantized_layers(pipeline.transformer)


def test_weights_that_are_not_loaded():
    with pytest.raises(DitQuantError, match="is not loaded"):
        ditquant.quantize(tiny("pixart").to("meta"), "rtn-w4a8")


def test_weights_in_eight_bits():
    model = tiny("pixart")
    linear = model.transformer_blocks[1].attn1.to_q
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(DitQuantError, match=r"'transformer_blocks\.1\.attn1\.to_q' is stored as torch\.float8"):
        ditquant.quantize(model, "rtn-w4a8")
    assert not quantized_layers(model)


class Odd(nn.Module):
    """Two blocks whose second layer has a prime number of channels, too many to rotate; one layer is never called."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"a": nn.Linear(16, width), "b": nn.Linear(width, 16), "spare": nn.Linear(16, 16)})
            for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block["b"](block["a"](x))
        return x


def test_a_width_that_cannot_be_rotated_is_named_before_calibration():
    calls = []
    with pytest.raises(DitQuantError, match=r"blocks\.0\.b: a width of 4099 channels"):
        ditquant.quantize(Odd(4099), "lrq-w4a8", forward=calls.append)
    assert not calls


def test_layers_that_calibration_misses_are_named(caplog):
    model = Odd()
    plan = ditquant.quantize(model, "lrq-w4a8", forward=lambda m: m(torch.randn(8, 16)))
    assert "never reached 2 layers, which are quantized data-free: blocks.0.spare, blocks.1.spare" in caplog.text
    assert "smooth" in [t.kind for t in plan.layers["blocks.0.a"].transforms]
    assert "smooth" not in [t.kind for t in plan.layers["blocks.0.spare"].transforms]


def test_settings_reach_the_calibration():
    pipeline, steps = tiny_pixart_pipeline(), []
    pipeline.transformer.register_forward_pre_hook(lambda *_: steps.append(1))
    ditquant.quantize(pipeline, "lrq-w4a8", prompts=PROMPTS[:1], settings={"steps": 3, "guidance": None})
    assert len(steps) == 3


def test_the_first_layer_that_saw_nan_is_named():
    """A scale overflows; after one step everything is NaN, the first block included."""
    pipeline = tiny_pixart_pipeline()
    pipeline.transformer.transformer_blocks[1].scale_shift_table.data[1, 0] = 3e38
    with pytest.raises(DitQuantError, match=r"'transformer_blocks\.1\.attn1\.to_q' holds NaN"):
        ditquant.quantize(pipeline, "lrq-w4a8", prompts=PROMPTS[:1])
    assert not quantized_layers(pipeline.transformer)
    assert torch.isfinite(next(pipeline.transformer.parameters())).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["transformer_blocks.1.ff.net.2.bias", "transformer_blocks.0.scale_shift_table", "proj_out.weight"]
)
def test_what_stays_in_floating_point_is_checked_before_calibration(name, value):
    pipeline, calls = tiny_pixart_pipeline(), []
    pipeline.transformer.get_parameter(name).data.view(-1)[3] = value
    pipeline.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    for options in ({}, {"prompts": PROMPTS[:1]}):
        with pytest.raises(DitQuantError, match=f"'{name}' holds NaN or infinite values"):
            ditquant.quantize(pipeline, "rtn-w4a8" if not options else "lrq-w4a8", **options)
    assert not calls and not quantized_layers(pipeline.transformer)


def test_masks_may_be_infinite():
    model = Odd()
    model.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
    assert ditquant.quantize(model, "rtn-w4a8").layers
    model = Odd()
    model.register_buffer("table", torch.tensor([0.0, float("nan")]))
    with pytest.raises(DitQuantError, match="'table' holds NaN"):
        ditquant.quantize(model, "rtn-w4a8")


@pytest.mark.parametrize("seed", [None, "a", 1.5, -1, True, 2**64])
def test_seeds_that_are_none(seed):
    with pytest.raises(DitQuantError, match=r"seed .* is not allowed"):
        ditquant.quantize(tiny("pixart"), "rtn-w4a8", seed=seed)


def test_seeds_of_numpy_are_integers():
    plans = [ditquant.quantize(tiny("pixart"), "lrq-w4a8", seed=seed) for seed in (3, np.int64(3))]
    assert plans[0].hash() == plans[1].hash()


def test_prompts_may_come_one_after_the_other():
    pipeline = tiny_pixart_pipeline()
    rules = recipe(target="transformer_blocks.0.attn1.to_q", transforms=["smooth"])
    plan = ditquant.quantize(pipeline, rules, prompts=(prompt for prompt in PROMPTS[:1]))
    assert len(plan.layers) == 1
    with pytest.raises(DitQuantError, match="prompts must be a list"):
        ditquant.quantize(tiny_pixart_pipeline(), rules, prompts={"a": 1})
