"""Linear layers of FLUX.1-dev on a card: cuBLAS in bfloat16 and INT8 against the Triton kernels."""

import torch
from gpu_clock import Calls, relative, rounds_of, table
from torch import Tensor
from torch.nn import functional as F

from ditquant.formats import PackedWeight
from ditquant.formats.packing import packed_width
from ditquant.kernels import Rotation, linear, triton
from ditquant.kernels.triton import ops
from ditquant.specs import ActSpec, WeightSpec

LAYERS = {"attention": (3072, 3072), "up": (3072, 12288), "down": (12288, 3072), "single out": (15360, 3072)}
MODULATION = (3072, 18432)  # one vector a sample, activations in floating point
BLOCK, GROUP = 128, 128
# relative error of a product: what rounding its result to bfloat16 may bring; the interpreter cuts numbers off instead
ALLOWED = {True: 2.0**-8, False: 2.0**-6}


def random_weight(rows: int, width: int, spec: WeightSpec, device: str, scale: float = 0.05) -> PackedWeight:
    """Make a weight of random codes: its speed does not depend on them."""
    codes = torch.randint(0, 256, (rows, packed_width(width, spec.bits)), device=device).to(torch.uint8)
    groups = spec.groups(width)
    params = {"scale": torch.full((rows, groups), scale, device=device)}
    if spec.format == "twin_log":
        shape = torch.tensor([0.05, 0.0, 0.0, 0.0], dtype=torch.float16, device=device)
        params["shape"] = shape.expand(rows, groups, 4).contiguous()
    elif not spec.symmetric:
        params["zero_point"] = torch.full((rows, groups), 2 ** (spec.bits - 1) - 1, dtype=torch.uint8, device=device)
    return PackedWeight(codes, params, (rows, width), spec)


def random_rotation(width: int, device: str) -> Rotation:
    """Make smoothing and a block Hadamard rotation, as most layers of `lrq` have them."""
    signs = torch.randint(0, 256, (width // 8,), device=device).to(torch.uint8)
    factor = (0.5 + torch.rand(width, device=device)).bfloat16()
    return Rotation(factor.view(torch.int16), BLOCK, signs)


def product(name: str, tokens: int, width: int, rows: int, rounds: int, device: str) -> dict[str, object]:
    """One layer by every contestant; refuses to time a product that is wrong."""
    x = torch.randn(tokens, width, device=device).bfloat16()
    dense, bias = torch.randn(rows, width, device=device).bfloat16(), torch.randn(rows, device=device).bfloat16()
    rotation, activation = random_rotation(width, device), ActSpec(8)
    grouped, by_group = WeightSpec(4, "affine", GROUP, False), ActSpec(8, "group", GROUP, False)
    weights = {f"W{bits}A8": random_weight(rows, width, WeightSpec(bits, "twin_log"), device) for bits in (4, 3)}
    weights["W4A8 in groups"] = random_weight(rows, width, grouped, device)
    plain = (x, rotation.factor, rotation.block, rotation.signs1, None, None, 8, True, 1.0, width, width)
    codes = ops.triton_quantize(*plain)

    def of_codes(weight: PackedWeight, decoded: bool) -> Tensor:
        params, spec = list(weight.params.values()), weight.spec
        kind = (spec.bits, spec.format, spec.symmetric, None, width, decoded, torch.bfloat16)
        return ops.triton_linear(*codes, weight.codes, params, bias, weight.shape, *kind)

    errors = {
        key: _error(codes, weight, bias, of_codes(weight, False)) for key, weight in weights.items() if "in" not in key
    }
    errors["W4A8 in groups"] = _grouped_error(x, weights["W4A8 in groups"], by_group)
    if wrong := {key: error for key, error in errors.items() if not error < ALLOWED[device != "cpu"]}:
        raise SystemExit(f"{name}: no speed is reported of products with the relative errors {wrong}")
    values, int8 = codes[0], torch.randint(-127, 128, (rows, codes[0].shape[1]), device=device, dtype=torch.int8)
    calls: Calls = {
        "bfloat16": lambda: F.linear(x, dense, bias),
        "int_mm alone": lambda: torch._int_mm(values, int8.T),
        "rotate and quantize": lambda: ops.triton_quantize(*plain),
    }
    for key in ("W4A8", "W3A8"):
        calls[f"{key} product"] = lambda w=weights[key]: of_codes(w, False)
        calls[f"{key} product, speed"] = lambda w=weights[key]: of_codes(w, True)
        calls[f"{key} layer"] = lambda w=weights[key]: linear(x, w, activation, bias, rotation)
        calls[f"{key} layer, speed"] = lambda w=weights[key]: linear(x, w, activation, bias, rotation, True)
    calls["W4A8 in groups"] = lambda w=weights["W4A8 in groups"]: linear(x, w, by_group, bias)
    seconds = rounds_of(calls, rounds, device)
    return {"tokens": tokens, "width": width, "rows": rows, "errors": errors, "calls": table(seconds, "bfloat16")}


def _error(codes: tuple[Tensor, ...], weight: PackedWeight, bias: Tensor, found: Tensor, some: int = 64) -> float:
    int8, scale = weight.to_int8()
    values, token_scale = codes[0][:some, : weight.shape[1]].double(), codes[1][0, :some, None].double()
    exact = values @ int8[:some].double().T * token_scale * scale[:some].double() + bias[:some].double()
    return relative(found[:some, :some], exact)


def _grouped_error(x: Tensor, weight: PackedWeight, activation: ActSpec, some: int = 64) -> float:
    from ditquant.kernels import fake_quantize

    exact = fake_quantize(x[:some], activation).double() @ weight.dequantize()[:some].double().T
    return relative(linear(x, weight, activation, None)[:some, :some], exact)


def half(tokens: int, rounds: int, device: str) -> dict[str, object]:
    """A modulation layer, whose activations are not quantized, with few tokens."""
    width, rows = MODULATION if device != "cpu" else (256, 96)
    x, dense = torch.randn(tokens, width, device=device).bfloat16(), torch.randn(rows, width, device=device).bfloat16()
    calls: Calls = {"bfloat16": lambda: F.linear(x, dense)}
    errors = {}
    for bits in (4, 3):
        weight = random_weight(rows, width, WeightSpec(bits, "twin_log"), device)
        exact = x.double() @ weight.dequantize().to(x.dtype).double().T
        errors[f"W{bits}A16"] = relative(linear(x, weight, None, None), exact)
        calls[f"W{bits}A16"] = lambda w=weight: linear(x, w, None, None)
    if not max(errors.values()) < ALLOWED[device != "cpu"]:
        raise SystemExit(f"no speed is reported of products with the relative errors {errors}")
    seconds = rounds_of(calls, rounds, device)
    return {"tokens": tokens, "width": width, "rows": rows, "errors": errors, "calls": table(seconds, "bfloat16")}


def products(tokens: int, rounds: int, device: str, peak: dict[str, float]) -> dict[str, object]:
    """All layers, with the share of the measured peak that the quantized ones reach."""
    layers = LAYERS if device != "cpu" else {"tiny": (256, 96)}
    assert triton.why_not(torch.device(device)) is None
    found: dict[str, object] = {}
    for name, (width, rows) in layers.items():
        row = product(name, tokens, width, rows, rounds, device)
        operations = 2 * tokens * width * rows / 1e12
        for key, call in row["calls"].items():
            if key not in ("bfloat16", "rotate and quantize"):
                call["share of the INT8 peak"] = round(operations / (call["ms"] / 1000) / peak["int8"], 3)
                call["times int_mm alone"] = round(row["calls"]["int_mm alone"]["ms"] / call["ms"], 3)
        found[name] = row
    for few in (1, 16):
        found[f"modulation, {few} tokens"] = half(few, rounds, device)
    return found
