"""Measure every method at every width on `pixart-shapes`, with ablations; write docs/results.md, a figure and JSON.

    python benchmarks/accuracy.py                          # about an hour on two cores; a killed run goes on
    python benchmarks/accuracy.py --bits w4a8 --seeds 1    # a look
    python benchmarks/accuracy.py --model dit-digits       # the same on another model: docs/results_digits.md

Step SQNR in dB: the error of the predicted velocity at the states of the full-precision trajectory, 12 steps, both
guidance branches, for 8 held-out captions a seed. A seed has its own calibration captions (8 of training scenes, 32 of
their 160 transformer calls), test captions, noise and rotations. Intervals are 95 % bootstrap intervals over captions.
Of the ten digits five, drawn by the seed, calibrate, and the others are tested with.

Every finished row is kept in the JSON file under the digest of its weights, recipe and settings: those that are there
already are not measured again. Rows of other weights, and of recipes as they are no longer, are dropped.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accuracy_model as model
import torch
from accuracy_page import write_page
from accuracy_rows import BITS, FULL, METHODS, PAINTED, SEEDS, Row, rows

from ditquant.atomic import atomic_file

HERE = Path(__file__).parent
PLACES = {model.SHAPES: ("accuracy.json", "results.md"), model.DIGITS: ("accuracy_digits.json", "results_digits.md")}


def settings(name: str) -> dict[str, Any]:
    """Return what all rows of a model share."""
    return {
        "model": name,
        "calls_a_prompt": model.CALLS_A_PROMPT,
        "test_prompts": model.TEST_PROMPTS,
        "steps": model.STEPS,
        "pictures": model.PICTURES,
    }


def key(name: str, weights: str, row: Row) -> str:
    """Return what a finished row is kept under."""
    text = json.dumps([weights, settings(name), asdict(row) | {"recipe": row.recipe.makes()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measure(job: tuple[str, str, Row]) -> tuple[str, dict[str, Any]]:
    """Measure one row of a model, in a process of its own."""
    name, of, row = job
    begin = time.perf_counter()
    if row.table == PAINTED:
        found = model.painted(None if row.name == FULL else row.recipe, row.seed, of)
    else:
        found = model.measured(row.recipe, row.seed, row.prompts, row.salient, of)
    said = {"table": row.table, "name": row.name, "bits_asked": row.bits, "seed": row.seed}
    return name, said | found | {"seconds": round(time.perf_counter() - begin, 1)}


def finished(path: Path, weights: str) -> dict[str, dict[str, Any]]:
    """Return the rows in a file that belong to these weights."""
    known = json.loads(path.read_text()) if path.exists() else {}
    return known["rows"] if known.get("weights") == weights else {}


def run(jobs: list[tuple[str, str, Row]], workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure rows in parallel, and yield each as soon as it is done."""
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(measure, jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=model.MODELS, default=model.SHAPES)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", choices=("methods", "page"), help="leave the ablations out, or write the page alone")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("-o", "--output", type=Path, help="JSON file, by default in benchmarks/results")
    parser.add_argument("--page", type=Path, help="by default in docs")
    options = parser.parse_args()
    of, (file_name, page_name) = options.model, PLACES[options.model]
    output = options.output or HERE / "results" / file_name
    page = options.page or HERE.parent / "docs" / page_name
    weights = model.digest(of)
    every = {key(of, weights, row) for row in rows()}
    done = {name: row for name, row in finished(output, weights).items() if name in every}
    wanted = rows(tuple(options.methods), tuple(options.bits), options.seeds)
    if options.only:
        wanted = [row for row in wanted if row.table == options.only]
    jobs = [(name, of, row) for row in wanted if (name := key(of, weights, row)) not in done]
    print(f"{len(wanted)} rows, {len(wanted) - len(jobs)} of them measured before", flush=True)
    for name, found in run(jobs, options.workers) if jobs else ():
        done[name] = found
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        result = {"versions": versions, "settings": settings(of), "weights": weights, "rows": done}
        with atomic_file(output, overwrite=True) as file:
            file.write_text(json.dumps(result, indent=1) + "\n")
        values = found.get("step_sqnr_db") or found["accuracy"]
        mean = sum(values) / len(values)
        line = f"{found['table']}: {found['name']} {found['bits_asked']} seed {found['seed']}"
        print(f"{line}: {mean:.2f} ({found['seconds']:.0f} s)", flush=True)
    write_page(list(done.values()), page, len(every - set(done)), of)
    print(f"written: {output}, {page}")


if __name__ == "__main__":
    main()
