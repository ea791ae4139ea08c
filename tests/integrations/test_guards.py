"""What diffusers would silently undo is refused; casts leave the words alone; dequantizing gives all back."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import ditquant
from ditquant import DitQuantError
from tests.integrations.built import equal_states, layers, quantized
from tests.tiny import run, tiny, tiny_pixart_pipeline


def test_fusing_projections_is_refused():
    model, truth = quantized("flux", mixed=False), run(quantized("flux", mixed=False))
    with pytest.raises(DitQuantError, match=r"fuse_qkv_projections\(\) would replace packed layers"):
        model.fuse_qkv_projections()
    attention = model.transformer_blocks[0].attn
    with pytest.raises(DitQuantError, match="fuse_projections"):
        attention.fuse_projections()
    assert torch.equal(run(model), truth)


CASTS = {
    "to": lambda model, dtype: model.to(dtype),
    "to with a device": lambda model, dtype: model.to("cpu", dtype=dtype),
    "half and back": lambda model, dtype: model.half().to(dtype),
    "of the class below": lambda model, dtype: nn.Module.to(model, dtype),
}


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("cast", CASTS)
def test_casting_leaves_the_words(cast, copied):
    original = quantized()
    model = copied(original)
    words = {k: v.clone() for k, v in model.state_dict().items() if not v.is_floating_point()}
    assert CASTS[cast](model, torch.bfloat16) is model
    assert all(torch.equal(model.state_dict()[k], v) for k, v in words.items())
    assert model.dtype == torch.bfloat16 and run(model).dtype == torch.bfloat16
    assert model is original or original.dtype == torch.float32


def test_a_pipeline_is_made_from_another():
    pipeline = tiny_pixart_pipeline()
    ditquant.quantize(pipeline, "lrq-w4a8")
    words = {k: v.clone() for k, v in pipeline.transformer.state_dict().items() if not v.is_floating_point()}
    made = type(pipeline).from_pipe(pipeline, dtype=torch.bfloat16)
    assert made.transformer.dtype == torch.bfloat16
    assert all(torch.equal(made.transformer.state_dict()[k], v) for k, v in words.items())


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
