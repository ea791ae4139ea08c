"""The kernels are torch operators: their fakes tell the truth, and whole layers compile without a break."""

import pytest
import torch

from ditquant.kernels.triton import ops
from ditquant.nn import QuantLinear
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, LayerPlan, WeightSpec
from ditquant.transforms import FITTERS

WIDTH, ROWS = 256, 24


def some_layer(device: str, activation: ActSpec | None, bits: int = 4) -> QuantLinear:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(WIDTH, ROWS)
    with torch.no_grad():
        linear.weight.copy_(0.05 * torch.randn(ROWS, WIDTH, generator=generator))
        linear.bias.copy_(torch.randn(ROWS, generator=generator))
    rotation = FITTERS["hadamard"](linear.weight.detach(), None, block=128, seed=3)
    spec = WeightSpec(bits, "twin_log")
    weight = QUANTIZERS["twin_log"](rotation.absorb(linear.weight.detach()), spec)
    plan = LayerPlan(spec, activation, (rotation.spec(),))
    return QuantLinear.from_linear(linear, weight, [rotation], plan).eval().to(device)


def test_fakes(device):
    x = torch.randn(3, 5, WIDTH, device=device)
    signs = torch.zeros(WIDTH // 8, dtype=torch.uint8, device=device)
    layer = some_layer(device, ActSpec(8))
    weight = layer.packed()
    params, tests = list(weight.params.values()), ("test_schema", "test_faketensor")
    checks = [
        (ops.triton_rotate, (x, None, 128, signs, None, None)),
        (ops.triton_quantize, (x, None, 128, signs, None, None, 8, False, 1.0, WIDTH, WIDTH)),
        (ops.triton_quantize, (x[..., :96], None, 0, None, None, None, 4, True, 0.9, 24, 24)),
        (ops.triton_half, (x, weight.codes, params, layer.bias.detach(), weight.shape, 4, "twin_log", True, None)),
    ]
    codes = ops.triton_quantize(*checks[1][1])
    shape = (layer.bias.detach(), weight.shape, 4, "twin_log", True, None, WIDTH, False, torch.bfloat16)
    checks.append((ops.triton_linear, (*codes, weight.codes, params, *shape)))
    q = torch.randn(1, 2, 70, 64, device=device)
    index = torch.arange(70, dtype=torch.int32, device=device).expand(2, 70).contiguous()
    checks.append((ops.triton_attention, (q, q, q, index, None, None, 8, 8)))
    for operator, args in checks:
        torch.library.opcheck(operator, args, test_utils=tests)


@pytest.mark.parametrize("activation", [ActSpec(8), None])
def test_a_layer_compiles_in_one_graph_for_all_resolutions(activation, device):
    layer, graphs = some_layer(device, activation), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=count)
    with torch.no_grad():
        for tokens in (5, 9, 16, 70):
            x = torch.randn(2, tokens, WIDTH, device=device)
            assert torch.equal(compiled(x), layer(x))
    assert len(graphs) == 1


def test_the_rotation_is_left_to_the_kernel(device, monkeypatch):
    layer, x = some_layer(device, ActSpec(8)), torch.randn(5, WIDTH, device=device)
    exact = layer.transform(x).double() @ layer.packed().dequantize().double().T + layer.bias.double()
    monkeypatch.setattr(type(layer.transforms[0]), "forward", None)
    with torch.no_grad():
        found = layer(x)
    assert 10 * torch.log10(exact.square().sum() / (exact - found).square().sum()) > 25
    layer.transforms[0].block = 8  # tensor cores take no such block
    monkeypatch.undo()
    with torch.no_grad():
        assert bool(layer(x).isfinite().all())


@pytest.mark.gpu
def test_a_cuda_graph_replays_the_layer(device):
    layer, x = some_layer(device, ActSpec(8)), torch.randn(128, WIDTH, device=device)
    with torch.no_grad():
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.copy_(torch.randn(128, WIDTH, device=device))
        graph.replay()
        assert torch.equal(y, layer(x))


@pytest.mark.gpu
@pytest.mark.parametrize("decoded", [False, True])
def test_what_is_kept_outlives_the_graphs_of_a_compiled_layer(decoded, device):
    layer = some_layer(device, ActSpec(8))
    layer.keeps_decoded = decoded
    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for tokens in (128, 256, 128, 256, 128):
            x = torch.randn(tokens, WIDTH, device=device)
            found = compiled(x).clone()
            _ = [torch.randn(256, 256, device=device) for _ in range(8)]
            assert torch.equal(found, layer(x))
