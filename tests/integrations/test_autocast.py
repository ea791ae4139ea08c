"""Under autocast a quantized layer takes and gives autocast's dtype, and computes as a model in that dtype does."""

import pytest
import torch
from torch import nn

import ditquant
from tests.integrations.built import quantized
from tests.tiny import run


def layer(recipe: dict) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48))
    x = torch.randn(64, 64)
    ditquant.quantize(model, {"name": "r", "rules": [{"target": "*"} | recipe]}, forward=lambda m: m(x))
    return model


@pytest.mark.parametrize("activation", [{"bits": 8}, {"bits": 4, "symmetric": False}, None])
def test_a_layer_computes_as_one_of_that_dtype(activation):
    module = layer({"weight": {"bits": 4}, "activation": activation, "transforms": [{"kind": "hadamard"}]})
    x = torch.randn(5, 64)
    with torch.no_grad():
        expected = module(x.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            found = module(x)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_a_model():
    model = quantized()
    truth = run(model).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = run(model).float()
    assert 0 < (found - truth).norm() / truth.norm() < 0.1


def test_gradients_reach_the_input_in_its_own_dtype():
    module = layer({"weight": {"bits": 4}, "activation": {"bits": 8}})
    x = torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.float().square().sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0 and module[0].bias.grad.dtype == torch.float32
