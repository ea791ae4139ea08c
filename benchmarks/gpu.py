"""Measure the Triton kernels on an NVIDIA card: products, attention, a whole model; correctness comes first.

    make bench-gpu                                    # writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --only products          # products, attention or model
    python benchmarks/gpu.py --tables                 # the tables of that file

Contestants take turns within a round; what is reported is the median of the rounds, and the median of the ratios of
one round. Whole models do not fit side by side, and run one after the other. The file is written after every part.
Nothing is printed for what computes something wrong.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_attention import attention
from gpu_clock import machine, peaks
from gpu_model import whole_model
from gpu_products import products

from ditquant.atomic import atomic_file
from ditquant.kernels import triton

PARTS = ("products", "attention", "model")


def why_not(device: str) -> str | None:
    """Say why nothing can be measured; None if it can."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "torch sees no CUDA card"
    return triton.why_not(torch.device(device))


def tables(result: dict) -> Iterator[str]:
    """Markdown tables of the figures in a file."""
    parts = {**result.get("products", {}), "attention": result.get("attention"), "model": result.get("model")}
    for name, part in parts.items():
        if not part:
            continue
        if "left out" in part:
            yield f"{name}: left out, {part['left out']}"
            continue
        rows = part.get("calls") or part["rows"]
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        sizes = ", ".join(
            f"{key} {part[key]}" for key in ("tokens", "width", "rows", "heads") if type(part.get(key)) is int
        )
        yield f"\n{name}: {sizes}\n"
        yield f"| | {' | '.join(columns)} |"
        yield "|---" * (len(columns) + 1) + "|"
        for key, row in rows.items():
            yield f"| {key} | {' | '.join(str(row.get(column, '')) for column in columns)} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tokens", type=int, default=4608, help="of a product, text included")
    parser.add_argument("--shape", default="flux-dev", help="of the whole model")
    parser.add_argument("--blocks", type=int, help="fewer blocks of it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--device", default="cuda", help="cpu tries the script in Triton's interpreter, with tiny sizes"
    )
    parser.add_argument("--tables", action="store_true", help="print the tables of the figures written before")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    options = parse()
    if options.tables:
        print("\n".join(tables(json.loads(options.output.read_text()))))
        return
    if (reason := why_not(options.device)) is not None:
        raise SystemExit(f"nothing is measured: {reason}. Run this on a machine with an NVIDIA card and Triton.")
    torch.manual_seed(0)
    result = machine(options.device) | {"rounds": options.rounds}
    result["peaks"] = peak = peaks(options.device, options.rounds)
    print(json.dumps(result, indent=1))
    run = {
        "products": lambda: products(options.tokens, options.rounds, options.device, peak),
        "attention": lambda: attention(options.rounds, options.device, peak),
        "model": lambda: model(options),
    }
    for part in options.only:
        result[part] = run[part]()
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(options.output, overwrite=True) as file:
            file.write_text(json.dumps(result, indent=1) + "\n")
        print("\n".join(tables({part: result[part]})))
    print(f"written: {options.output}")


def model(options: argparse.Namespace) -> dict[str, object]:
    """Time a whole model where diffusers is installed and the card holds it."""
    from ditquant.models import SHAPES

    text = SHAPES[options.shape].text
    try:
        return whole_model(options.shape, options.blocks, options.tokens - text, options.rounds, options.device)
    except ImportError as error:
        return {"left out": str(error)}
    except torch.OutOfMemoryError:
        return {"left out": "the card has too little memory; try --blocks 8"}


if __name__ == "__main__":
    main()
