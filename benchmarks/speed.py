"""Measure quantized models against bfloat16 on this CPU: products, a model of real shape, other packages, loading.

    python benchmarks/speed.py                # some minutes; writes benchmarks/results/speed.json
    python benchmarks/speed.py --load         # also 0.6 billion parameters from disk to the first forward
    python benchmarks/speed.py --sdnq-python ENV/bin/python      # also SDNQ, which is installed there
    python benchmarks/speed.py --tables       # the tables of docs/speed.md, from that file

Contestants take turns within a round; what is reported is the median of the rounds, and the median of the ratios of
one round. Every call includes all that it needs: smoothing, rotation, quantization, decoding, scales, bias. No figure
is printed for a product whose result is wrong.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor
from torch.nn import functional as F

import ditquant
from ditquant.bench import interleave, loading, measure, median_ms, ratio, shape_subject, sqnr_db
from ditquant.integrations.diffusers import mark_quantized
from ditquant.kernels import Rotation, attention, cpu, linear, linear_reference
from ditquant.kernels.cpu.ops import FEW_TOKENS, linear_packed, quantize_tokens
from ditquant.models import SHAPES as MODELS
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, QuantPlan, WeightSpec
from ditquant.transforms.signs import draw_signs

SHAPES = {
    "attention": (2048, 1152, 1152),
    "text": (240, 1152, 1152),
    "up": (2048, 1152, 4608),
    "down": (2048, 4608, 1152),
}
GROUPED = {"text": (240, 1152, 1152), "attention": (2048, 1152, 1152), "digits": (512, 384, 384)}
GROUP_SIZES = (32, 64, 128)
SHAPE, TEXT_TOKENS, BATCH = "pixart-xl", 120, 2
LOADED, LOADED_TOKENS = 28, 256
PRODUCT_SQNR_DB = 30.0  # of the INT8 path against the float64 product of the same codes


def product(shape: tuple[int, int, int], bits: int, rounds: int) -> dict:
    """One layer alone: torch's INT8 and bfloat16 products, ours without and with rotation and quantization."""
    tokens, width, rows = shape
    generator = torch.Generator().manual_seed(0)
    dense, x = (torch.randn(n, width, generator=generator) for n in (rows, tokens))
    x, bias = x.bfloat16(), torch.zeros(rows, dtype=torch.bfloat16)
    weight = QUANTIZERS["twin_log"](dense, WeightSpec(bits, "twin_log"), None, search="fit")
    activation, params = ActSpec(8), list(weight.params.values())
    rotation = Rotation(torch.ones(width).bfloat16().view(torch.int16), 128, draw_signs(width, generator))
    codes = quantize_tokens(x, None, 0, None, None, None, 8, True, 1.0)
    int8, row_scale = weight.to_int8()
    values = (codes[0][:, :width].to(torch.int16) - 128).to(torch.int8)
    exact = values.double() * codes[1].double()[:, None] @ (int8.double() * row_scale.double()[:, None]).T

    def packed(decoded: bool) -> Tensor:
        spec = weight.spec
        return linear_packed(
            *codes, weight.codes, params, bias, weight.shape, bits, spec.format, True, decoded, torch.bfloat16
        )

    for decoded in (False, True):
        if sqnr_db(exact, packed(decoded)) < PRODUCT_SQNR_DB:
            raise SystemExit("the packed product is wrong: no speed is reported")
    half, int8 = dense.bfloat16(), int8.t()
    seconds = interleave(
        {
            "bfloat16": lambda: F.linear(x, half, bias),
            "int_mm": lambda: torch._int_mm(values, int8),
            "memory": lambda: packed(False),
            "speed": lambda: packed(True),
            "memory, rotated": lambda: linear(x, weight, activation, bias, rotation),
            "speed, rotated": lambda: linear(x, weight, activation, bias, rotation, True),
        },
        rounds,
    )
    operations = 2 * tokens * width * rows / 1e6
    found = {name: round(operations / median_ms(times)) for name, times in seconds.items()}
    return {"gop_per_s": found} | {f"{name} / int_mm": round(ratio(seconds, name, "int_mm"), 3) for name in seconds}


def groups(shape: tuple[int, int, int], group: int, rounds: int) -> dict:
    """One layer of Q-DiT, 4-bit weights and 8-bit activations in groups: in float32 on decoded weights, in integers."""
    tokens, width, rows = shape
    generator = torch.Generator().manual_seed(0)
    dense, x = (torch.randn(n, width, generator=generator).bfloat16() for n in (rows, tokens))
    weight = QUANTIZERS["rtn"](dense.float(), WeightSpec(4, "affine", group, False))
    activation = ActSpec(8, "group", group, False)
    if sqnr_db(linear_reference(x.float(), weight, activation, None), linear(x, weight, activation, None)) < 45:
        raise SystemExit("the product in groups is wrong: no speed is reported")
    seconds = interleave(
        {
            "bfloat16": lambda: F.linear(x, dense),
            "float32": lambda: linear_reference(x, weight, activation, None),
            "memory": lambda: linear(x, weight, activation, None),
            "speed": lambda: linear(x, weight, activation, None, None, True),
        },
        rounds,
    )
    found = {name: round(median_ms(times), 2) for name, times in seconds.items()}
    return {"ms": found, "ratio": round(ratio(seconds, "memory", "float32"), 2)}


def attend(tokens: int, keys: int, rounds: int) -> dict:
    """Attention of PixArt-XL alone: torch's and ours."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 16, 72, generator=generator).bfloat16().transpose(1, 2) for n in (tokens, keys, keys))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    ours, torchs = (sqnr_db(exact, f(q, k, v)) for f in (attention, F.scaled_dot_product_attention))
    if ours < torchs - 1:
        raise SystemExit("the compiled attention is wrong: no speed is reported")
    calls = {"torch": lambda: F.scaled_dot_product_attention(q, k, v), "compiled": lambda: attention(q, k, v)}
    seconds = interleave(calls, rounds)
    ms = {name: round(median_ms(times), 1) for name, times in seconds.items()}
    return {"ms": ms, "ratio": round(ratio(seconds, "compiled", "torch"), 3)}


def whole(blocks: PixArtTransformer2DModel, plan: QuantPlan) -> PixArtTransformer2DModel:
    """Repeat quantized blocks until the model is whole: loading does not ask what the weights are."""
    model, given = MODELS[SHAPE].build(), len(blocks.transformer_blocks)
    layers = {}
    for i in range(LOADED):
        model.transformer_blocks[i] = copy.deepcopy(blocks.transformer_blocks[i % given])
        prefix = f"transformer_blocks.{i % given}."
        inside = {name: layer for name, layer in plan.layers.items() if name.startswith(prefix)}
        layers |= {name.replace(prefix, f"transformer_blocks.{i}.", 1): layer for name, layer in inside.items()}
    mark_quantized(model, QuantPlan(layers, plan.recipe))
    return model


def load(recipe: str) -> dict:
    """Load 28 quantized blocks of PixArt-XL in a new process, up to the first output."""
    subject = shape_subject(SHAPE, 2, LOADED_TOKENS, BATCH, torch.bfloat16)
    weights = sum(p.numel() for p in MODELS[SHAPE].build(device="meta").parameters())
    plan = ditquant.quantize(subject.model, recipe, forward=subject.call)
    found = loading(whole(subject.model, plan), subject.arguments, times=3)
    return {"recipe": recipe, "weights": weights, "tokens": BATCH * LOADED_TOKENS} | found


def tables(result: dict) -> str:
    """The tables of docs/speed.md, from the figures that were written."""
    labels = ("model", "ms", "times bfloat16", "bytes", "of the blocks", "MB at the peak", "MB on disk", "SQNR dB")
    lines = ["| " + " | ".join(labels) + " |", "|---" * len(labels) + "|"]
    for name, row in result["model"].items():
        cells = [f"{row['ms']:.0f}", f"{row['ratio']:.2f}", f"{row['bytes_ratio']:.2f}"]
        cells += ["–" if row["blocks_ratio"] is None else f"{row['blocks_ratio']:.2f}"]
        cells += ["–" if row[key] is None else f"{row[key]:.0f}" for key in ("peak_mb", "file_mb")]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['sqnr_db']:.1f} |")
    split = {name: row["parts"] for name, row in result["model"].items() if "parts" in row}
    names = list(next(iter(split.values()), {}))
    lines += ["", "| ms of a call | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, row in split.items():
        lines.append(f"| {name} | " + " | ".join(str(row[part]) for part in names) + " |")
    columns = ("bfloat16", "int_mm", "memory", "speed", "memory, rotated", "speed, rotated")
    lines += ["", "| product, GOP/s | " + " | ".join(columns) + " | speed, rotated / int_mm |", "|---" * 8 + "|"]
    for name, row in result["products"].items():
        cells = " | ".join(str(row["gop_per_s"][column]) for column in columns)
        lines.append(f"| {name} | {cells} | {row['speed, rotated / int_mm']:.2f} |")
    lines += [
        "",
        "| in groups, ms | group | bfloat16 | float32 | memory | speed | float32 / memory |",
        "|---" * 7 + "|",
    ]
    for name, row in result["groups"].items():
        ms = " | ".join(f"{row['ms'][column]:.2f}" for column in ("bfloat16", "float32", "memory", "speed"))
        lines.append(f"| {name} | {ms} | {row['ratio']:.1f} |")
    lines += ["", "| attention | torch, ms | compiled, ms | ratio |", "|---|---|---|---|"]
    for name, row in result["attention"].items():
        lines.append(f"| {name} | {row['ms']['torch']} | {row['ms']['compiled']} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["lrq-w4a8", "lrq-w3a8"])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also compiled by torch, which takes a minute more")
    parser.add_argument("--load", action="store_true", help="also measure loading, which takes some minutes more")
    parser.add_argument("--sdnq-python", type=Path, help="the python of an environment that has SDNQ")
    parser.add_argument("--tables", action="store_true", help="print the tables of the figures written before")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    options = parse()
    if options.tables:
        print(tables(json.loads(options.output.read_text())))
        return
    if (reason := cpu.why_not()) is not None:
        raise SystemExit(f"nothing to measure: {reason}")
    subject = shape_subject(SHAPE, options.blocks, options.tokens, BATCH, torch.bfloat16)
    modes, rounds = ("memory", "speed"), options.rounds
    more = {"sdnq_python": options.sdnq_python, "compile": options.compile, "tell": print}
    result = measure(subject, options.recipes, modes, rounds, **more)
    result |= {"few_tokens": FEW_TOKENS, "products": {}, "groups": {}, "attention": {}}
    for bits in (4, 3):
        for name, shape in SHAPES.items():
            result["products"][f"{name} {'x'.join(map(str, shape))} w{bits}"] = product(shape, bits, rounds)
    for name, shape in GROUPED.items():
        for group in GROUP_SIZES:
            result["groups"][f"{name} {'x'.join(map(str, shape))} | {group}"] = groups(shape, group, rounds)
    for keys in (options.tokens, TEXT_TOKENS):
        result["attention"][f"{keys} keys"] = attend(options.tokens, keys, rounds)
    if options.load:
        result["load"] = load(options.recipes[0])
        print(f"load: {result['load']}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))


if __name__ == "__main__":
    main()
