"""Quantizing while from_pretrained reads equals loading first and quantizing in place, without data."""

import pytest
import torch
from diffusers import PixArtAlphaPipeline
from diffusers.quantizers import PipelineQuantizationConfig

import ditquant
from ditquant import DitQuantConfig, DitQuantError
from tests.integrations.built import WEIGHT_ONLY, equal_states, layers
from tests.tiny import run, tiny, tiny_pixart_pipeline

HADAMARD = {"name": "turned", "rules": [{"target": "role:*", "weight": {"bits": 3}, "transforms": ["hadamard"]}]}


@pytest.fixture
def saved(tmp_path):
    tiny("pixart").save_pretrained(tmp_path / "full", max_shard_size="40KB")
    return tmp_path / "full"


def load(saved, recipe="rtn-w4a8", keep=None, **options):
    config = DitQuantConfig(recipe=recipe, modules_to_not_convert=keep)
    return type(tiny("pixart")).from_pretrained(saved, quantization_config=config, **options)


def in_place(saved, recipe, **options):
    model = type(tiny("pixart")).from_pretrained(saved, **options)
    ditquant.quantize(model, recipe)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["rtn-w4a8", HADAMARD], ids=["rtn", "hadamard"])
def test_equal_to_in_place(saved, tmp_path, recipe, dtype):
    model, truth = load(saved, recipe, torch_dtype=dtype), in_place(saved, recipe, torch_dtype=dtype)
    assert equal_states(model, truth) and torch.equal(run(model), run(truth))
    plans = [m.config.quantization_config.plan for m in (model, truth)]
    assert plans[0].hash() == plans[1].hash() and not any(p.is_meta for p in model.parameters())
    model.save_pretrained(tmp_path / "again")
    assert equal_states(model, type(model).from_pretrained(tmp_path / "again", torch_dtype=dtype))


def test_modules_of_a_dtype_of_their_own(tmp_path):
    """Wan keeps some in float32, also while it is quantized."""
    tiny("wan").save_pretrained(tmp_path)
    config = DitQuantConfig(recipe="rtn-w4a8")
    model = type(tiny("wan")).from_pretrained(tmp_path, quantization_config=config, torch_dtype=torch.bfloat16)
    truth = type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    ditquant.quantize(truth, "rtn-w4a8")
    assert equal_states(model, truth)


def test_a_whole_pipeline(tmp_path):
    pipeline = tiny_pixart_pipeline()
    pipeline.save_pretrained(tmp_path)
    config = PipelineQuantizationConfig(quant_mapping={"transformer": DitQuantConfig(recipe=WEIGHT_ONLY)})
    again = PixArtAlphaPipeline.from_pretrained(tmp_path, quantization_config=config)
    ditquant.quantize(pipeline, WEIGHT_ONLY)
    assert equal_states(again.transformer, pipeline.transformer) and layers(again.transformer)


@pytest.mark.parametrize(
    "pattern, kept",
    [
        ("transformer_blocks.0.attn1.to_q", 1),
        ("transformer_blocks.1.*", 10),
        (r"re:.*\.ff\..*", 4),
        ("role:cross_*", 8),
        ("proj_out", 0),
    ],
)
def test_modules_to_not_convert(saved, pattern, kept):
    model = load(saved, keep=[pattern])
    assert len(layers(model)) == 20 - kept
    assert all(torch.equal(p, tiny("pixart").state_dict()[n]) for n, p in model.state_dict().items() if "norm" in n)


def test_an_unknown_pattern_is_refused_with_close_matches(saved):
    with pytest.raises(DitQuantError, match=r"'transformer_blocks\.0\.attn1\.to_p' matches no.*attn1\.to_[qkv]"):
        load(saved, keep=["transformer_blocks.0.attn1.to_p"])


def test_nothing_left_to_quantize(saved):
    with pytest.raises(DitQuantError, match="quantizes none"):
        load(saved, keep=["*"])


def test_a_checkpoint_that_lacks_a_weight(saved):
    from safetensors.torch import load_file, save_file

    for file in saved.glob("*.safetensors"):
        tensors = load_file(file)
        tensors.pop("transformer_blocks.0.attn1.to_q.weight", None)
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(DitQuantError, match=r"no weight for layer 'transformer_blocks\.0\.attn1\.to_q'"):
        load(saved)


def test_a_stored_plan_wins(saved, tmp_path):
    load(saved).save_pretrained(tmp_path / "four")
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        again = load(tmp_path / "four", recipe="rtn-w8a8")
    assert {layer.plan.weight.bits for layer in layers(again).values()} == {4}


def test_the_configuration_prints_and_refuses():
    assert "rtn-w4a8" in repr(DitQuantConfig(recipe="rtn-w4a8"))
    with pytest.raises(DitQuantError, match=r"a recipe .* or a plan"):
        DitQuantConfig()
    with pytest.raises(DitQuantError, match="plan must be a mapping"):
        DitQuantConfig(plan=3)
    with pytest.raises(DitQuantError, match="checksums 3 is not allowed"):
        DitQuantConfig(recipe="rtn-w4a8", checksums=3)


@pytest.mark.parametrize("name", ["transformer_blocks.1.ff.net.2.bias", "scale_shift_table"])
def test_what_stays_in_floating_point_is_finite(tmp_path, name):
    model = tiny("pixart")
    model.get_parameter(name).data.view(-1)[3] = float("nan")
    model.save_pretrained(tmp_path / "full")
    with pytest.raises(DitQuantError, match=f"'{name}' holds NaN"):
        load(tmp_path / "full")
