"""What diffusers would silently undo is refused; what it refuses itself stays refused; dequantizing gives all back."""

import copy
import json

import pytest
import torch
from torch import nn

from ditquant import DitQuantError
from tests.integrations.built import equal_states, layers, quantized
from tests.tiny import run, tiny


def test_fusing_projections_is_refused():
    model, truth = quantized("flux", mixed=False), run(quantized("flux", mixed=False))
    with pytest.raises(DitQuantError, match=r"fuse_qkv_projections\(\) would replace packed layers"):
        model.fuse_qkv_projections()
    attention = model.transformer_blocks[0].attn
    with pytest.raises(DitQuantError, match="fuse_projections"):
        attention.fuse_projections()
    assert torch.equal(run(model), truth)


def test_casting_is_refused_by_diffusers_and_harmless_below_it():
    model = quantized()
    words = {k: v.clone() for k, v in model.state_dict().items() if not v.is_floating_point()}
    for cast in (lambda: model.to(torch.float16), model.half, model.float):
        with pytest.raises(ValueError, match="quantized model"):
            cast()
    nn.Module.to(model, torch.bfloat16)
    nn.Module.half(model)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in words.items())
    assert model.dtype == torch.float16 and run(model).dtype == torch.float16


def test_moving_keeps_the_model():
    model = quantized().to("cpu")
    assert model.dtype == torch.float32 and model.device == torch.device("cpu") and torch.isfinite(run(model)).all()


@pytest.mark.parametrize("name", ["pixart", "flux"])
def test_dequantizing_gives_an_ordinary_model(name, tmp_path):
    model, packed = quantized(name, mixed=False), quantized(name, mixed=False)
    model.dequantize()
    assert not layers(model) and model.state_dict().keys() == tiny(name).state_dict().keys()
    torch.testing.assert_close(run(model), run(packed), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert equal_states(type(model).from_pretrained(tmp_path), model)
    nn.Module.to(model, torch.bfloat16)
    model.to(torch.float32)
    assert type(model.state_dict()).__name__ == "OrderedDict"
    copy.deepcopy(model).half()
    if name == "flux":
        model.fuse_qkv_projections()


def test_layers_with_two_names_are_dequantized_once():
    model = quantized(mixed=False)
    first = model.transformer_blocks[0].attn1
    first.to_k = first.to_q
    model.dequantize()
    assert type(first.to_k) is nn.Linear and first.to_k is first.to_q
