"""NaN and infinite values are followed to where they begin, whatever they make of the steps behind."""

import pytest
import torch

from ditquant.evaluation.doctor import examine
from tests.tiny import PROMPTS, tiny_pixart_pipeline

LAYER = "transformer_blocks.0.ff.net.2"
BEHIND = "8 layers behind it", "their input is NaN or infinite"  # the second block, but for what reads the text
HOLDS = "holds NaN or infinite values"


def troubles(pipeline, prompts: int = 1, steps: int = 2) -> list[tuple[str, str]]:
    found = examine(pipeline, PROMPTS[:prompts], settings={"steps": steps})
    return [(one.name, one.what) for one in found.troubles()]


def spoil(pipeline, name: str, value: float = torch.nan):
    pipeline.transformer.get_parameter(name).data.flatten()[0] = value
    return pipeline


def test_a_sound_model_has_none():
    assert troubles(tiny_pixart_pipeline()) == []


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_an_ill_layer_is_first_and_those_behind_it_are_counted(part):
    found = troubles(spoil(tiny_pixart_pipeline(), f"{LAYER}.{part}"))
    assert found == [(LAYER, f"its {part} {HOLDS}"), BEHIND]


def test_an_overflow_of_float16_says_how_far_it_reaches():
    pipeline = tiny_pixart_pipeline().to(torch.float16)
    pipeline.transformer.get_submodule(LAYER).bias.data[0] = 60000
    pipeline.transformer.get_submodule(LAYER).weight.data[0] = 0
    assert all("its output overflows float16" not in what for _, what in troubles(pipeline))
    pipeline.transformer.get_submodule("transformer_blocks.0.ff.net.0.proj").bias.data[:] = 64
    pipeline.transformer.get_submodule(LAYER).weight.data[0] = 64
    (name, what), behind = troubles(pipeline)[:2]
    assert name == LAYER and what.startswith("its output overflows float16: it reaches ") and behind == BEHIND
    assert what.endswith(" from a finite input, float16 holds 65504") and float(what.split()[6]) > 65504


@pytest.mark.parametrize(
    ("ill", "said"),
    [
        ("scale_shift_table", [("scale_shift_table", HOLDS)]),
        ("transformer_blocks.1.scale_shift_table", [("transformer_blocks.1.scale_shift_table", HOLDS), BEHIND]),
        ("proj_out.bias", [("proj_out", f"its bias {HOLDS}")]),
    ],
)
def test_a_parameter_outside_the_layers_is_named(ill, said):
    assert troubles(spoil(tiny_pixart_pipeline(), ill, torch.inf)) == said


def test_a_computation_outside_the_layers_is_named():
    pipeline = tiny_pixart_pipeline()
    norm = pipeline.transformer.transformer_blocks[1].norm2
    norm.register_forward_hook(lambda _module, _args, output: output / 0)
    (name, what), (count, _) = troubles(pipeline)
    assert name == "transformer_blocks.1.norm2" and what.startswith("finite input (up to ")
    assert count == "2 layers behind it"


def test_what_the_pipeline_passes_in_is_named():
    pipeline = tiny_pixart_pipeline()
    pipeline.text_encoder.shared.weight.data[:] = torch.nan
    (name, what), *_ = troubles(pipeline)
    assert name == "PixArtTransformer2DModel"
    assert what.startswith("receives NaN or infinite values (encoder_hidden_states)")


def test_values_that_the_model_mends_are_named():
    pipeline = tiny_pixart_pipeline()
    block = pipeline.transformer.transformer_blocks[0]
    block.attn1.register_forward_pre_hook(lambda _module, args: (args[0] / 0,), prepend=True)
    pipeline.transformer.transformer_blocks[0].register_forward_hook(lambda *a: torch.nan_to_num(a[2]))
    (name, what), *_ = troubles(pipeline)
    assert name.startswith("transformer_blocks.0") and "NaN" in what


def test_an_ill_parameter_that_is_not_used_is_named_too():
    pipeline = tiny_pixart_pipeline()
    pipeline.transformer.register_buffer("left", torch.tensor([1.0, torch.nan]))
    pipeline.transformer.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert troubles(spoil(pipeline, f"{LAYER}.bias")) == [(LAYER, f"its bias {HOLDS}"), BEHIND, ("left", HOLDS)]
