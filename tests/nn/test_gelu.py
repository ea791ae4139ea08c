"""`set_mode` fuses diffusers' GELU with the layer before it, and the outputs are those of the two."""

import copy
import pickle

import pytest
import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from torch.nn import functional as F

from ditquant import quantize, set_mode
from ditquant.nn import QuantLinear
from ditquant.nn.gelu import FusedGELU

RECIPES = ("rtn-w4a8", "lrq-w3a8", "svdquant-w4a8", "qdit-w4a8", "rtn-w4a16")


def a_feed_forward(recipe: str, kind: str = "gelu-approximate") -> FeedForward:
    torch.manual_seed(0)
    model = FeedForward(128, mult=2, activation_fn=kind)
    x = torch.randn(2, 5, 128)
    quantize(model, recipe, forward=lambda m: m(x))
    assert isinstance(model.net[0].proj, QuantLinear)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_outputs_are_those_of_layer_and_gelu(recipe, dtype):
    model = a_feed_forward(recipe).to(dtype)
    first, x = model.net[0], torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        apart = F.gelu(first.proj(x).double(), approximate="tanh")
        set_mode(model, "memory")
        assert type(first) is FusedGELU
        fused = first(x).double()
    eps = torch.finfo(dtype).eps  # the fused one rounds once less
    torch.testing.assert_close(fused, apart, rtol=2 * eps + 1e-6, atol=2 * eps + 1e-6)


def test_one_pass_does_both(monkeypatch):
    model = a_feed_forward("rtn-w4a8")
    set_mode(model, "memory")
    monkeypatch.setattr(GELU, "gelu", lambda *_: pytest.fail("the GELU came apart"))
    with torch.no_grad():
        model(torch.randn(3, 128))


@pytest.mark.parametrize("kind", ["gelu", "geglu", "gelu-approximate"])
def test_only_a_gelu_with_tanh_is_fused(kind):
    model = a_feed_forward("rtn-w4a8", kind)
    set_mode(model, "memory")
    assert (type(model.net[0]) is FusedGELU) == (kind == "gelu-approximate")


def test_a_hook_sees_the_layers_own_output():
    model, seen = a_feed_forward("rtn-w4a8"), []
    first, x = model.net[0], torch.randn(3, 128)
    with torch.no_grad():
        expected = first.proj(x)
        set_mode(model, "memory")
        first.proj.register_forward_hook(lambda _module, _args, output: seen.append(output))
        y = first(x)
    assert torch.equal(seen[0], expected)
    torch.testing.assert_close(y, F.gelu(expected, approximate="tanh"))


def test_an_adapter_adds_before_the_gelu():
    peft = pytest.importorskip("peft")
    model = a_feed_forward("rtn-w4a8")
    set_mode(model, "memory")
    config = peft.LoraConfig(r=4, target_modules=["net.0.proj"], init_lora_weights=False)
    adapted = peft.inject_adapter_in_model(config, model)
    first, x = adapted.net[0], torch.randn(3, 128)
    with torch.no_grad():
        torch.testing.assert_close(first(x), F.gelu(first.proj(x), approximate="tanh"))
        assert not torch.allclose(first(x), first.proj.base_layer(x, gelu=True), atol=1e-3)


def test_gradients_pass():
    model = a_feed_forward("rtn-w4a8")
    x = torch.randn(3, 128, requires_grad=True)
    (apart,) = torch.autograd.grad(model(x).sum(), x)
    set_mode(model, "memory")
    (fused,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(apart, fused)


def test_copies_and_pickles_are_fused_and_compile():
    model = a_feed_forward("rtn-w4a8")
    set_mode(model, "memory")
    x = torch.randn(3, 128)
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(other.net[0]) is FusedGELU
            assert torch.equal(other(x), expected)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected)
