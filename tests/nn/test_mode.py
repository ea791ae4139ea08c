"""Speed and memory mode: equal results, nothing kept that is saved or out of date."""

import copy
import gc
import pickle
import sys

import pytest
import torch
from torch import nn

import ditquant
from ditquant.errors import DitQuantError
from ditquant.kernels import cpu, kept_bytes
from ditquant.nn import QuantLinear, set_mode
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, LayerPlan, TransformSpec, WeightSpec
from ditquant.transforms import FITTERS

MODULE = sys.modules["ditquant.kernels.linear"]  # the package exports a function of the same name
ROWS, WIDTH = 96, 192
DECODED_BYTES = 128 * WIDTH + 128 * 4  # tiles of 64 rows and their sums


def some_layer(seed: int = 0, kind: str = "twin_log", rotation: bool = True, bits: int = 4) -> QuantLinear:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(WIDTH, ROWS)
    weight = torch.randn(ROWS, WIDTH, generator=generator)
    linear.bias = nn.Parameter(torch.randn(ROWS, generator=generator), requires_grad=False)
    transforms = [FITTERS["hadamard"](weight, None, block=64)] if rotation else []
    spec = WeightSpec(bits, kind)
    for transform in transforms:
        weight = transform.absorb(weight)
    plan = LayerPlan(spec, ActSpec(8), tuple(TransformSpec(t.kind, t.spec().options) for t in transforms))
    return QuantLinear.from_linear(linear, QUANTIZERS[kind](weight, spec), transforms, plan)


def some_input() -> torch.Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(9))


@pytest.fixture(params=["1", "0"], ids=["compiled", "torch"])
def kernels(request, monkeypatch):
    """Both ways to an integer product, on any CPU."""
    monkeypatch.setenv("DITQUANT_CPU_KERNELS", request.param)
    monkeypatch.setattr(MODULE, "CPU_HAS_INT8", True)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_both_modes_compute_the_same(bits, rotation):
    layer, x = some_layer(bits=bits, rotation=rotation), some_input()
    with torch.no_grad():
        truth = layer(x)
        set_mode(layer, "speed")
        for _ in range(2):
            assert torch.equal(layer(x), truth)
        set_mode(layer, "memory")
        assert torch.equal(layer(x), truth)


@pytest.mark.usefixtures("kernels")
def test_only_speed_keeps_a_byte_a_weight_and_memory_drops_it():
    gc.collect()
    layer, x, before = some_layer(), some_input(), kept_bytes()
    small = 24 * ROWS  # a table of 16 values and a scale a row
    with torch.no_grad():
        layer(x)
        assert kept_bytes() - before <= small
        set_mode(layer, "speed")
        layer(x)
        assert ROWS * WIDTH <= kept_bytes() - before <= DECODED_BYTES + small
        set_mode(layer, "memory")
        assert kept_bytes() - before <= small
        layer(x)
        assert kept_bytes() - before <= small
        set_mode(layer, "speed")
        layer(x)
    del layer
    gc.collect()
    assert kept_bytes() == before


@pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))
def test_with_many_tokens_decoding_costs_less_than_keeping():
    layer, before = some_layer(), kept_bytes()
    set_mode(layer, "speed")
    with torch.no_grad():
        layer(torch.zeros(1024, WIDTH))
        assert kept_bytes() - before < ROWS * WIDTH
        layer(torch.zeros(512, WIDTH))
        assert kept_bytes() - before >= ROWS * WIDTH


def replace_by_load(layer: QuantLinear, other: QuantLinear) -> None:
    layer.load_state_dict(other.state_dict())


def replace_parameters(layer: QuantLinear, other: QuantLinear) -> None:
    for name in ("codes", "scale", "shape"):
        setattr(layer, name, nn.Parameter(getattr(other, name).clone(), requires_grad=False))


def replace_data(layer: QuantLinear, other: QuantLinear) -> None:
    for name in ("codes", "scale", "shape"):
        getattr(layer, name).data = getattr(other, name).clone()


def replace_in_place(layer: QuantLinear, other: QuantLinear) -> None:
    with torch.no_grad():
        for name in ("codes", "scale", "shape"):
            getattr(layer, name).copy_(getattr(other, name))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("mode", ["speed", "memory"])
@pytest.mark.parametrize("replace", [replace_by_load, replace_parameters, replace_data, replace_in_place])
def test_what_is_kept_is_never_out_of_date(replace, mode):
    layer, other, x = some_layer(0, rotation=False), some_layer(1, rotation=False), some_input()
    set_mode(layer, mode)
    with torch.no_grad():
        layer(x)
        replace(layer, other)
        layer.bias = other.bias
        assert torch.equal(layer(x), other(x))


def test_scales_alone_may_change():
    layer, x = some_layer(rotation=False, kind="twin_log"), some_input()
    layer.bias = None
    set_mode(layer, "speed")
    with torch.no_grad():
        before = layer(x)
        layer.scale.copy_((layer.scale.view(torch.float32) * 2).view(torch.int32))
        torch.testing.assert_close(layer(x), 2 * before)


@pytest.mark.usefixtures("kernels")
def test_weights_in_one_storage_are_kept_apart():
    layers, x = [some_layer(seed, rotation=False) for seed in (0, 1)], some_input()
    with torch.no_grad():
        truth = [layer(x) for layer in layers]
        shared = torch.stack([layer.codes for layer in layers])
        for layer, codes in zip(layers, shared, strict=True):
            layer.codes = nn.Parameter(codes, requires_grad=False)
            layer.keeps_decoded = True
        before = kept_bytes()
        for _ in range(2):
            for layer, y in zip(layers, truth, strict=True):
                assert torch.equal(layer(x), y)
        assert kept_bytes() - before >= 2 * ROWS * WIDTH


def test_what_is_kept_is_not_saved_and_not_copied():
    layer, x = some_layer(), some_input()
    keys = list(layer.state_dict())
    set_mode(layer, "speed")
    with torch.no_grad():
        truth = layer(x)
        assert list(layer.state_dict()) == keys and len(list(layer.buffers())) == 1
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x), truth)


def test_inference_tensors_keep_nothing():
    with torch.inference_mode():
        layer, x, before = some_layer(), some_input(), kept_bytes()
        set_mode(layer, "speed")
        truth = layer(x)
        assert kept_bytes() == before
        assert torch.equal(layer(x), truth)


def test_speed_mode_of_a_compiled_layer():
    layer, x = some_layer(), some_input()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        truth = layer(x)
        for mode in ("memory", "speed", "memory"):
            set_mode(layer, mode)
            torch.testing.assert_close(compiled(x), truth)


def test_gradients_are_those_of_memory_mode():
    layer, x = some_layer(), some_input().requires_grad_()
    (truth,) = torch.autograd.grad(layer(x).sum(), x)
    set_mode(layer, "speed")
    assert torch.equal(torch.autograd.grad(layer(x).sum(), x)[0], truth)


def test_other_modes_and_models_are_refused():
    with pytest.raises(DitQuantError, match=r"mode 'fast' is not allowed. Choose one of memory, speed"):
        set_mode(some_layer(), "fast")
    with pytest.raises(DitQuantError, match="Linear has no quantized layers"):
        ditquant.set_mode(nn.Linear(3, 3), "speed")
    with pytest.raises(DitQuantError, match=r"not a dict. Pass pipe\.transformer"):
        ditquant.set_mode({}, "speed")
