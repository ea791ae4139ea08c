"""Measure `auto` on `pixart-shapes`: the Pareto front, and step SQNR where the bytes of some budgets are spent by it.

    python benchmarks/auto.py                      # writes benchmarks/results/auto.json

Calibration, captions and the measure are those of `accuracy.py`, seed 0. The front tells the error that is foreseen, in
dB against all layers at 4 bits; beside it stands what was measured.
"""

import argparse
import json
import time
from collections import Counter
from functools import partial
from pathlib import Path

import accuracy_model as model
import torch

from ditquant import auto
from ditquant.atomic import atomic_file
from ditquant.engine import match
from ditquant.recipe import Recipe

BUDGETS = (4.2, 3.2)
SEED, PROMPTS = 0, 8


def formats(found: auto.Auto) -> dict[str, int]:
    """Count the layers of each format and width."""
    return Counter("float" if r.weight is None else f"{r.weight.format}-{r.weight.bits}" for r in found.recipe.rules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "auto.json")
    options = parser.parse_args()
    calls, transformer = model.calls(PROMPTS, SEED), model.pipeline().transformer
    matched = match(transformer, Recipe.load(auto.BASE))
    begin = time.perf_counter()
    with torch.no_grad():
        ways = auto.measure("", transformer, matched, partial(model.run_all, calls, transformer), SEED, len(calls))
    weights = sum(layer.parameters for layer, _ in matched)
    seconds = time.perf_counter() - begin
    print(f"ways of {len(ways)} layers: {seconds:.0f} s", flush=True)
    rows: list[dict] = []
    for budget in options.budgets:
        found = auto.spend(ways, weights, budget)
        front = [[round(point.bits, 3), round(point.noise_db, 2)] for point in found.front]
        row = {"budget": budget, "foreseen_db": round(found.chosen.noise_db, 2), "formats": formats(found)}
        rows.append(row | model.measured(found.recipe, SEED, PROMPTS, False))
        print(rows[-1], flush=True)
        result = {"versions": {"torch": torch.__version__}, "weights": model.digest(model.SHAPES)}
        result |= {"rows": rows, "front": front}
        result["seconds"] = round(seconds)
        with atomic_file(options.output, overwrite=True) as file:
            file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
