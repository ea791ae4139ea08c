"""`layer.weight`: shape, dtype and device for nothing, values when they are used, never written."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from ditquant import DitQuantError
from ditquant.nn import QuantLinear
from tests.integrations.built import layers, quantized


@pytest.fixture
def layer():
    return next(iter(layers(quantized()).values()))


def test_facts_are_free(layer, monkeypatch):
    monkeypatch.setattr(QuantLinear, "dequantize", lambda self: pytest.fail("decoded"))
    weight = layer.weight
    assert weight.shape == weight.size() == (layer.out_features, layer.in_features) and weight.dim() == 2
    assert weight.dtype == torch.float32 and weight.is_floating_point() and not weight.requires_grad
    assert weight.device == weight.data.device == torch.device("cpu") and weight.numel() == weight.shape.numel()
    assert isinstance(weight, torch.Tensor) and "codes" in dict(layer.named_parameters())


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w.clone(),
        lambda w: w.detach(),
        lambda w: w + 0,
        lambda w: w[:],
        lambda w: w.data.clone(),
        lambda w: torch.stack([w, w])[1],
        lambda w: torch.cat(list(w.split(3))),
        lambda w: nn.functional.linear(torch.eye(w.shape[1]), w).T,
        lambda w: torch.tensor(w.tolist()),
        lambda w: torch.from_numpy(np.asarray(w).copy()),
        lambda w: torch.from_numpy(w.numpy().copy()),
        lambda w: w.to(torch.float64).float(),
        copy.deepcopy,
        lambda w: pickle.loads(pickle.dumps(w)),
    ],
)
def test_values_come_when_they_are_used(layer, use):
    found = use(layer.weight)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, layer.dequantize())
    assert not layer.weight.is_meta and "0." in repr(layer.weight)


def write_item(w):
    w[0] = 0


def add(w):
    w += 1


def set_data(w):
    w.data = torch.zeros(1)


@pytest.mark.parametrize("write", [write_item, add, set_data, lambda w: w.data.mul_(2), lambda w: nn.init.zeros_(w)])
def test_writing_is_refused(layer, write):
    with pytest.raises(DitQuantError, match="cannot be written to"):
        write(layer.weight)


def test_freezing_is_harmless(layer):
    layer.weight.requires_grad_(False)
    layer.requires_grad_(False)


def test_a_layer_that_is_cast_has_a_weight_of_that_dtype():
    model = quantized().to("cpu")
    for layer in layers(model).values():
        words = {k: v.clone() for k, v in layer.state_dict().items() if not v.is_floating_point()}
        layer.to(torch.bfloat16)
        assert layer.weight.dtype == torch.bfloat16 == layer.weight.clone().dtype
        assert all(torch.equal(v, layer.state_dict()[k]) for k, v in words.items())
        assert layer(torch.randn(2, layer.in_features, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_decoding_works_in_inference_mode(layer):
    truth = layer.dequantize()
    with torch.inference_mode():
        assert torch.equal(layer.dequantize(), truth)
