"""Diffusers' processors run as before, with the attention itself by our kernels, and can be had back."""

import copy
import inspect
import pickle

import pytest
import torch

from ditquant import kernels
from ditquant.attention import use_compiled_attention
from ditquant.nn import set_mode
from tests.integrations.built import quantized
from tests.tiny import TINY, inputs, run, tiny


def attention_layers(model):
    return [module for module in model.modules() if hasattr(module, "processor")]


@pytest.fixture
def calls(monkeypatch):
    seen, attend = [], kernels.attention
    monkeypatch.setattr(kernels, "attention", lambda *args, **kwargs: seen.append(0) or attend(*args, **kwargs))
    return seen


@pytest.mark.parametrize("name", TINY)
def test_every_family_attends_by_the_kernels_and_back(name, calls):
    model = tiny(name).to(torch.bfloat16)
    before = [(type(layer.processor), layer.processor.__dict__.copy()) for layer in attention_layers(model)]
    truth = run(model)
    assert not calls
    for _ in range(2):
        use_compiled_attention(model, True)
    found = run(model)
    assert len(calls) >= len(before) > 0
    assert float((found - truth).float().norm() / truth.float().norm()) < 0.03
    for layer, (cls, _) in zip(attention_layers(model), before, strict=True):
        assert isinstance(layer.processor, cls) and type(layer.processor).__name__ == cls.__name__
        signatures = (inspect.signature(type(layer.processor).__call__), inspect.signature(cls.__call__))
        assert signatures[0] == signatures[1]
    for _ in range(2):
        use_compiled_attention(model, False)
    assert [(type(layer.processor), layer.processor.__dict__) for layer in attention_layers(model)] == before
    count = len(calls)
    assert torch.equal(run(model), truth) and len(calls) == count


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_outputs_are_rescaled_where_that_changes_them(factor):
    model = tiny("pixart").to(torch.bfloat16)
    for layer in attention_layers(model):
        layer.rescale_output_factor = factor
    divided = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            divided.extend(args[1:] if func is torch.Tensor.div else ())
            return func(*args, **(kwargs or {}))

    with Count():
        truth = run(model)
        assert divided.count(factor) >= 4
        divided.clear()
        use_compiled_attention(model)
        found = run(model)
    assert divided.count(factor) == (0 if factor == 1 else 4)
    assert float((found - truth).float().norm() / truth.float().norm()) < 0.03


def test_processors_of_others_are_left_alone():
    class Own(type(attention_layers(tiny("pixart"))[0].processor)):
        pass

    model = tiny("pixart")
    mine = attention_layers(model)[0].processor = Own()
    use_compiled_attention(model, True)
    assert attention_layers(model)[0].processor is mine
    use_compiled_attention(model, False)
    assert attention_layers(model)[0].processor is mine


def test_a_model_that_attends_by_the_kernels_can_be_copied_and_pickled(calls):
    model = tiny("pixart").to(torch.bfloat16)
    use_compiled_attention(model, True)
    truth = run(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        count = len(calls)
        assert torch.equal(run(twin), truth) and len(calls) == 2 * count
        calls[:] = calls[:count]


@pytest.mark.parametrize("mode", ["speed", "memory"])
def test_both_modes_attend_by_the_kernels_in_one_graph(mode):
    model = quantized("pixart", dtype=torch.bfloat16)
    set_mode(model, mode)
    truth = run(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs(model))[0], truth)
    use_compiled_attention(model, False)
    assert all(type(layer.processor).__module__.startswith("diffusers.") for layer in attention_layers(model))
