"""Measure quantized models against bfloat16 on this CPU: products, a model of real shape, loading.

    python benchmarks/speed.py                # some minutes; writes benchmarks/results/speed.json
    python benchmarks/speed.py --load         # also 0.6 billion parameters from disk to the first forward
    python benchmarks/speed.py --tables       # the tables of docs/speed.md, from that file

Contestants take turns within a round; what is reported is the median of the rounds, and the median of the ratios of
one round. Every call includes all that it needs: smoothing, rotation, quantization, decoding, scales, bias. No figure
is printed for a product whose result is wrong.
"""

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

import ditquant
from ditquant.attention import use_compiled_attention
from ditquant.integrations.diffusers import mark_quantized
from ditquant.kernels import Rotation, attention, cpu, kept_bytes, linear
from ditquant.kernels.cpu.ops import FEW_TOKENS, linear_packed, quantize_tokens
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, QuantPlan, WeightSpec
from ditquant.transforms.signs import draw_signs

SHAPES = {
    "attention": (2048, 1152, 1152),
    "text": (240, 1152, 1152),
    "up": (2048, 1152, 4608),
    "down": (2048, 4608, 1152),
}
TEXT_TOKENS = 120
PRODUCT_SQNR_DB = 30.0  # of the INT8 path against the float64 product of the same codes
GIB = 1 << 30


def interleave(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time every call once a round, in seconds, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            start = CLOCK()
            call()
            if i:
                seconds[name].append(CLOCK() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], of: str, to: str) -> float:
    """How many times faster `of` is than `to`, round by round."""
    return round(statistics.median(b / a for a, b in zip(seconds[of], seconds[to], strict=True)), 3)


def sqnr_db(exact: Tensor, found: Tensor) -> float:
    """Signal to error, in decibel."""
    return float(10 * torch.log10(exact.square().sum() / (exact - found.double()).square().sum()))


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
    operations = 2 * tokens * width * rows / 1e9
    found = {name: round(operations / statistics.median(times)) for name, times in seconds.items()}
    return {"gop_per_s": found} | {f"{name} / int_mm": ratio(seconds, name, "int_mm") for name in seconds}


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
    ms = {name: round(1000 * statistics.median(times), 1) for name, times in seconds.items()}
    return {"ms": ms, "ratio": ratio(seconds, "compiled", "torch")}


def build(blocks: int, side: int) -> PixArtTransformer2DModel:
    """Make PixArt-XL with random weights in bfloat16, for side x side tokens."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 16, "attention_head_dim": 72, "cross_attention_dim": 1152, "caption_channels": 4096}
    sizes |= {"in_channels": 4, "out_channels": 8, "patch_size": 2, "sample_size": 2 * side}
    model = PixArtTransformer2DModel(num_layers=blocks, use_additional_conditions=False, **sizes)
    return model.eval().to(torch.bfloat16)


def run(model: nn.Module, side: int) -> Tensor:
    """Call a model on two samples."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 2 * side, 2 * side, generator=generator).to(model.dtype)
    text = torch.randn(2, TEXT_TOKENS, 4096, generator=generator).to(model.dtype)
    return model(
        latents,
        encoder_hidden_states=text,
        encoder_attention_mask=torch.ones(2, TEXT_TOKENS),
        timestep=torch.tensor([500, 500]),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in {*model.parameters(), *model.buffers()})


def whole_model(recipes: list[str], blocks: int, side: int, rounds: int) -> dict:
    """PixArt-XL end to end: bfloat16, and every recipe in both modes; bytes are those of the blocks."""
    model = build(blocks, side)
    truth, dense_bytes = run(copy.deepcopy(model).float(), side), stored_bytes(model.transformer_blocks)
    calls: dict[str, Callable[[], object]] = {"bfloat16": lambda: run(model, side)}
    found: dict[str, dict] = {"bfloat16": {"sqnr_db": round(sqnr_db(truth.double(), run(model, side)), 1)}}
    for recipe in recipes:
        memory = copy.deepcopy(model)
        ditquant.quantize(memory, recipe, forward=lambda m: run(m, side))
        speed, plain = copy.deepcopy(memory), copy.deepcopy(memory)
        ditquant.set_mode(memory, "memory")
        ditquant.set_mode(speed, "speed")
        use_compiled_attention(plain, False)
        for name, quantized in (("memory", memory), ("speed", speed), ("torch attention", plain)):
            before, key = kept_bytes(), f"{recipe}, {name}"
            error = sqnr_db(truth.double(), run(quantized, side))
            held = stored_bytes(quantized.transformer_blocks) + kept_bytes() - before
            found[key] = {"sqnr_db": round(error, 1), "bytes_ratio": round(held / dense_bytes, 3)}
            calls[key] = lambda quantized=quantized: run(quantized, side)
    seconds = interleave(calls, rounds)
    for name, times in seconds.items():
        found[name]["ms"] = round(1000 * statistics.median(times))
        found[name]["ratio"] = ratio(seconds, name, "bfloat16")
    return found


def whole(blocks: PixArtTransformer2DModel, plan: QuantPlan, count: int, side: int) -> PixArtTransformer2DModel:
    """Repeat quantized blocks until there are `count`: loading does not ask what the weights are."""
    model, given = build(count, side), len(blocks.transformer_blocks)
    layers = {}
    for i in range(count):
        model.transformer_blocks[i] = copy.deepcopy(blocks.transformer_blocks[i % given])
        prefix = f"transformer_blocks.{i % given}."
        inside = {name: layer for name, layer in plan.layers.items() if name.startswith(prefix)}
        layers |= {name.replace(prefix, f"transformer_blocks.{i}.", 1): layer for name, layer in inside.items()}
    mark_quantized(model, QuantPlan(layers, plan.recipe))
    return model


def load(recipe: str, side: int) -> dict:
    """Load 28 quantized blocks of PixArt-XL in a new process, up to the first output."""
    with tempfile.TemporaryDirectory() as folder:
        blocks = build(2, side)
        weights = sum(p.numel() for p in build(28, side).parameters())
        plan = ditquant.quantize(blocks, recipe, forward=lambda m: run(m, side))
        whole(blocks, plan, 28, side).save_pretrained(folder)
        code = (
            "import sys, time, torch, ditquant; from diffusers import PixArtTransformer2DModel as Model;"
            "sys.path.insert(0, sys.argv[1]); import speed; torch.set_grad_enabled(False);"
            "torch.set_num_threads(int(sys.argv[4])); clock = getattr(time, sys.argv[5]); start = clock();"
            "model = Model.from_pretrained(sys.argv[2], torch_dtype=torch.bfloat16);"
            "ditquant.set_mode(model, 'memory'); loaded = clock(); speed.run(model, int(sys.argv[3]));"
            "print(loaded - start, clock() - start)"
        )
        arguments = [str(Path(__file__).parent), folder, str(side), str(torch.get_num_threads()), CLOCK.__name__]
        times = []
        for _ in range(3):
            out = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True
            )
            if out.returncode:
                raise SystemExit(out.stderr)
            times.append([float(number) for number in out.stdout.split()[-2:]])
    loaded, first = (round(statistics.median(column), 2) for column in zip(*times, strict=True))
    return {"recipe": recipe, "weights": weights, "tokens": 2 * side**2, "load_s": loaded, "first_output_s": first}


def cpu_name() -> str:
    """Name of the processor, with its family and model where it does not tell more."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    name = fields.get("model name", platform.processor())
    return f"{name}, family {fields['cpu family']}, model {fields['model']}" if "model" in fields else name


def tables(result: dict) -> str:
    """The tables of docs/speed.md, from the figures that were written."""
    lines = ["| model | ms | times bfloat16 | bytes of the blocks | output SQNR dB |", "|---|---|---|---|---|"]
    for name, row in result["model"].items():
        held = f"{row['bytes_ratio']:.2f}" if "bytes_ratio" in row else "1"
        lines.append(f"| {name} | {row['ms']} | {row['ratio']:.2f} | {held} | {row['sqnr_db']:.1f} |")
    columns = ("bfloat16", "int_mm", "memory", "speed", "memory, rotated", "speed, rotated")
    lines += ["", "| product, GOP/s | " + " | ".join(columns) + " | speed, rotated / int_mm |", "|---" * 8 + "|"]
    for name, row in result["products"].items():
        cells = " | ".join(str(row["gop_per_s"][column]) for column in columns)
        lines.append(f"| {name} | {cells} | {row['speed, rotated / int_mm']:.2f} |")
    lines += ["", "| attention | torch, ms | compiled, ms | ratio |", "|---|---|---|---|"]
    for name, row in result["attention"].items():
        lines.append(f"| {name} | {row['ms']['torch']} | {row['ms']['compiled']} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["lrq-w4a8", "lrq-w3a8"])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--side", type=int, default=32, help="tokens are side x side")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--load", action="store_true", help="also measure loading, which takes some minutes more")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time instead of wall time, on a busy machine"
    )
    parser.add_argument("--tables", action="store_true", help="print the tables of the figures written before")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    return parser.parse_args()


CLOCK = time.perf_counter


@torch.no_grad()
def main() -> None:
    global CLOCK
    options = parse()
    CLOCK = time.process_time if options.cpu_time else time.perf_counter
    if options.tables:
        print(tables(json.loads(options.output.read_text())))
        return
    if (reason := cpu.why_not()) is not None:
        raise SystemExit(f"nothing to measure: {reason}")
    versions = {"torch": torch.__version__, "python": platform.python_version(), "ditquant": ditquant.__version__}
    result = {"versions": versions, "cpu": cpu_name(), "threads": torch.get_num_threads()}
    result |= {"clock": CLOCK.__name__, "rounds": options.rounds, "few_tokens": FEW_TOKENS}
    print(f"{result['cpu']}, {result['threads']} thread(s), {CLOCK.__name__}")
    result["products"] = {}
    for bits in (4, 3):
        for name, shape in SHAPES.items():
            found = result["products"][f"{name} {'x'.join(map(str, shape))} w{bits}"] = product(
                shape, bits, options.rounds
            )
            print(f"{name:>10} {shape} w{bits}, GOP/s: " + "  ".join(f"{k} {v}" for k, v in found["gop_per_s"].items()))
    result["attention"] = {
        f"{keys} keys": attend(options.side**2, keys, options.rounds) for keys in (options.side**2, TEXT_TOKENS)
    }
    for name, found in result["attention"].items():
        print(f"attention, {name}: {found['ms']} ms, {found['ratio']:.2f}x")
    result["model"] = whole_model(options.recipes, options.blocks, options.side, options.rounds)
    for name, found in result["model"].items():
        print(f"{name:>26}  " + "  ".join(f"{k} {v}" for k, v in found.items()))
    if options.load:
        result["load"] = load(options.recipes[0], 16)
        print(f"load: {result['load']}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
