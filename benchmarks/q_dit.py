"""Measure Q-DiT on `dit-digits`: its ladder, searched plans against uniform ones, group sizes with two defects put in.

    python benchmarks/q_dit.py --work work/                # with the plans of results/plans; a killed run goes on
    python benchmarks/q_dit.py --work work/ --summary      # the JSON and the page of what is there

Error: |z - z_full|² / |z_full|² of final latents from equal seeds, with a 95 % bootstrap interval over samples;
`accuracy` is that of the class asked for, `fd` the Fréchet distance of the classifier's features from the held-out
digits. Samples have the seeds 2,000,000 and on: none of them was searched or calibrated with. 3 x 2,000 of them are
three seeds of 2,000 samples; sizes of the scan have `SCANNED` of three seeds together. All rows paint the same samples,
in pieces of 200 that are kept in the work folder: first some of every row, then those that the bars ask for.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from q_dit_model import Bench, errors
from q_dit_page import write_page
from q_dit_rows import BITS, BLOCK, DRAWN, FULL, GROUPS, PRODUCTS, Row, draws, ladder, scan, searched, uniform
from q_dit_summary import summary

from ditquant.atomic import atomic_file

PIECE, SEEDS, SAMPLES = 200, 3, 2000
SCANNED = 2000  # of a size, all seeds together
HERE = Path(__file__).parent
PLANS = [HERE / "results" / "plans" / name for name in ("plan4", "plan3", "start4", "start3")]


def wanted(plans: list[Path]) -> list[tuple[Row, int]]:
    """Return the rows, each with the number of samples that it is to have."""
    every = SEEDS * SAMPLES
    ours = [(row, every) for row in searched(plans)]
    steps = [(row, every) for bits in BITS for row in ladder(bits)]
    rivals = [(uniform(bits, g), every) for bits in BITS for g in (192, 384, None)]
    rest = [(PRODUCTS, PIECE * SEEDS), (uniform("w4a8", 128, "qdit-gptq"), every)]
    known = {row for row, _ in (*steps, *rivals)}
    sizes = [(row, SCANNED) for bits in BITS for row in scan(bits) if row not in known]
    drawn = [(row, PIECE * SEEDS) for group in DRAWN for row in draws(group) if row.damping]
    return [(FULL, every), *ours, *steps, *rivals, *rest, *sizes, *drawn]


def pieces(rows: list[tuple[Row, int]]) -> Iterator[tuple[Row, int]]:
    """Yield rows with the first sample of a piece: one piece of each seed for all rows, then the next of each."""
    for start in range(0, SAMPLES, PIECE):
        for seed in range(SEEDS):
            for row, samples in rows:
                if start * SEEDS + seed * PIECE < samples:
                    yield row, seed * SAMPLES + start


def place(work: Path, settings: dict, row: Row, first: int) -> Path:
    """Return the file of a piece, which belongs to these settings, weights and rules."""
    rules = [] if row in (FULL, PRODUCTS) else [asdict(rule) for rule in row.rules()]
    words = {key: value for key, value in asdict(row).items() if key != "damping"}  # which stands in the rules
    text = json.dumps([settings, words | {"plan": ""}, rules], sort_keys=True)
    return work / hashlib.sha256(text.encode()).hexdigest()[:16] / f"{first:05}.npz"


def measure(bench: Bench, row: Row, first: int, truth: Path, file: Path, models: dict[Row, torch.nn.Module]) -> float:
    """Paint a piece, and keep its errors (of full precision: its latents) and what the classifier sees."""
    if row not in models:
        models[row] = bench.quantized(row)
    made = bench.paint(models[row], first, PIECE)
    flat = made.latents.flatten(1).numpy()
    kept = {"latents": flat} if row == FULL else {"errors": errors(made, np.load(truth)["latents"])}
    with atomic_file(file, overwrite=True) as part, part.open("wb") as opened:
        np.savez(opened, **kept, **bench.see(made, first))
    return float(np.mean(kept.get("errors", 0.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of what is finished")
    parser.add_argument("--plans", nargs="*", type=Path, default=PLANS, help="folders of ditquant search")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--summary", action="store_true", help="measure nothing")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "q_dit.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "methods" / "q_dit.md")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    bench = Bench(args.steps, args.guidance)
    settings = {"steps": args.steps, "guidance": args.guidance, "weights": bench.digest()}
    rows, models, begin = wanted(args.plans), {}, time.monotonic()
    for row, first in () if args.summary else pieces(rows):
        file, truth = (place(args.work, settings, r, first) for r in (row, FULL))
        if file.exists() or time.monotonic() - begin > args.seconds:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        error = measure(bench, row, first, truth, file, models)
        print(f"{row.bits} {row.name} {first}: {error:.6f}, {time.monotonic() - start:.1f} s", flush=True)
    files = {row: sorted(place(args.work, settings, row, 0).parent.glob("*.npz")) for row, _ in rows}
    data = {"settings": settings, "torch": torch.__version__} | summary(files, bench.judge)
    data["stale layers"] = {
        bits: {g: bench.stale_layers(int(bits[1]), g) for g in GROUPS if g % BLOCK} for bits in BITS
    }
    with atomic_file(args.output, overwrite=True) as part:
        part.write_text(json.dumps(data, indent=1) + "\n")
    write_page(data, args.page)


if __name__ == "__main__":
    main()
