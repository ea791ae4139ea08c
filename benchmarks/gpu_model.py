"""A whole transformer of FLUX.1-dev's shape on a card: bfloat16 against quantized layers, eager and compiled.

Weights are random, and so are codes: what is measured is time and memory. Quality needs a trained model.
"""

import copy
import gc
from collections.abc import Callable

import torch
from gpu_clock import rounds_of, table
from gpu_products import BLOCK, random_rotation, random_weight
from torch import nn

import ditquant
from ditquant.models import SHAPES, find_linears
from ditquant.nn import QuantLinear
from ditquant.specs import ActSpec, LayerPlan, TransformSpec, WeightSpec
from ditquant.transforms import TRANSFORMS


def quantized_linear(linear: nn.Linear, role: str, bits: int) -> QuantLinear:
    """Make the layer that `lrq-w4a8` or `lrq-w3a8` would put there, with random codes."""
    device, width = linear.weight.device, linear.in_features
    spec = WeightSpec(bits, "twin_log")
    weight = random_weight(linear.out_features, width, spec, str(device), scale=3 * width**-0.5)
    if role == "modulation" or width % BLOCK:
        return QuantLinear.from_linear(linear, weight, [], LayerPlan(spec))
    rotation = random_rotation(width, str(device))
    smooth = TRANSFORMS["smooth"](torch.ones(width, device=device))
    hadamard = TRANSFORMS["hadamard"](rotation.signs1, width, BLOCK)
    plan = LayerPlan(spec, ActSpec(8), (smooth.spec(), TransformSpec("hadamard", {"block": BLOCK})))
    return QuantLinear.from_linear(linear, weight, [smooth, hadamard], plan)


def quantize_in_place(model: nn.Module, bits: int) -> None:
    """Replace the linear layers of the blocks."""
    for layer in find_linears(model).layers:
        parent, _, name = layer.name.rpartition(".")
        linear = model.get_submodule(layer.name)
        setattr(model.get_submodule(parent), name, quantized_linear(linear, layer.role, bits))


def whole_model(shape: str, blocks: int | None, tokens: int, rounds: int, device: str) -> dict[str, object]:
    """Time one forward and take its peak of memory: eager, compiled block by block, and that in a CUDA graph."""
    real = SHAPES[shape]
    arguments = real.arguments(tokens, device=device)
    found: dict[str, dict] = {}
    seconds: dict[str, list[float]] = {}
    for name, change in contestants().items():
        model = real.build(blocks, device=device)
        try:
            change(model)
        except ImportError as error:
            found[name] = {"left out": str(error)}
            continue
        held = sum(t.numel() * t.element_size() for t in {*model.parameters(), *model.buffers()})
        for way in ("eager", "compiled", "CUDA graph") if device != "cpu" else ("compiled",):
            if way == "compiled" and device != "cpu":
                model.compile_repeated_blocks(fullgraph=True)
            key = f"{name}, {way}"
            try:
                call = _graph(model, arguments) if way == "CUDA graph" else lambda m=model: _forward(m, arguments)
                found[key] = {"weights_gib": round(held / 2**30, 3)} | _run(call, device)
            except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
                found[key] = {"left out": str(error).strip().splitlines()[0]}
                continue
            seconds |= rounds_of({key: call}, rounds, device)
            del call
        del model
        gc.collect()
        torch._dynamo.reset()
        if device != "cpu":
            torch.cuda.empty_cache()
    if "bfloat16, compiled" in seconds:
        _compare(found, table(seconds, "bfloat16, compiled"))
    return {"shape": shape, "blocks": blocks, "tokens": tokens, "text": real.text, "rows": found}


def _compare(found: dict[str, dict], times: dict[str, dict[str, float]]) -> None:
    base = found["bfloat16, compiled"]
    for name, row in times.items():
        found[name] |= row
        for what in ("peak", "weights"):
            found[name][f"{what} of bfloat16"] = round(found[name][f"{what}_gib"] / max(base[f"{what}_gib"], 1e-9), 3)


def _graph(model: nn.Module, arguments: dict) -> Callable[[], torch.Tensor]:
    """Capture one forward, which then runs without Python."""
    graph = torch.cuda.CUDAGraph()
    for _ in range(2):
        _forward(model, arguments)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        y = _forward(model, arguments)

    def replay() -> torch.Tensor:
        graph.replay()
        return y

    return replay


def contestants() -> dict[str, Callable[[nn.Module], None]]:
    """What is done to the bfloat16 model before it runs."""

    def speed(model: nn.Module) -> None:
        quantize_in_place(model, 4)
        ditquant.set_mode(model, "speed")

    def torchao(model: nn.Module) -> None:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())

    return {
        "bfloat16": lambda model: None,
        "W4A8": lambda model: quantize_in_place(model, 4),
        "W3A8": lambda model: quantize_in_place(model, 3),
        "W4A8, speed": speed,
        "torchao INT8 dynamic": torchao,
    }


@torch.no_grad()
def _forward(model: nn.Module, arguments: dict) -> torch.Tensor:
    return model(**copy.copy(arguments), return_dict=False)[0]


def _run(call: Callable[[], torch.Tensor], device: str) -> dict[str, float]:
    """Two calls to warm up, then the peak of memory of one; a result that is not finite is an error."""
    for _ in range(2):
        y = call()
    if not bool(y.isfinite().all()):
        raise SystemExit("no speed is reported of a model whose output is not finite")
    if device == "cpu":
        return {"peak_gib": 0.0}
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}
