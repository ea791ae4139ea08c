"""The backward of a quantized layer is that of the linear layer it decodes to."""

import pytest
import torch
from torch import nn

from tests.integrations.built import layers, quantized


@pytest.mark.parametrize("lead", [(5,), (2, 3), ()])
def test_gradient_of_input_and_bias(lead):
    for name, layer in layers(quantized()).items():
        x = torch.randn(*lead, layer.in_features, requires_grad=True)
        bias = layer.bias.requires_grad_()
        cotangent = torch.randn(*lead, layer.out_features)
        truth = nn.functional.linear(x, layer.dequantize(), bias)
        expected = torch.autograd.grad(truth, (x, bias), cotangent)
        found = torch.autograd.grad(layer(x), (x, bias), cotangent)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=name)


def test_training_computes_what_inference_does():
    for layer in layers(quantized()).values():
        x = torch.randn(2, 3, layer.in_features)
        with torch.no_grad():
            truth = layer(x)
        assert torch.equal(layer(x.requires_grad_()), truth)


def test_nothing_is_kept_without_a_gradient():
    layer = next(iter(layers(quantized()).values()))
    layer.bias.requires_grad_(False)
    assert layer(torch.randn(2, layer.in_features)).grad_fn is None
