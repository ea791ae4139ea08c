"""Measure sparse and quantized attention on a video model: PAROAttention, the same without its orders, other rules.

    OMP_NUM_THREADS=2 python benchmarks/paro.py                    # the shipped model; goes on where it was killed
    OMP_NUM_THREADS=2 python benchmarks/paro.py --model FOLDER --fit 2 --test 4 --steps 12
    OMP_NUM_THREADS=2 python benchmarks/paro.py --test 24 --only "PARO INT8" Sage -o int8.json   # some rows, paired

Plans are fitted to `--fit` prompts and tested on `--test` others, at equal seeds. Two figures for each row: PSNR of the
videos against full precision, and the SQNR of the predictions at the states of the full-precision trajectory, which
scatters less. Writes benchmarks/results/paro.json after every row.
"""

import argparse
import hashlib
import json
import platform
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from paro_masks import SageAttention, SpargeAttn, SparseVideoGen

from ditquant import sources
from ditquant.attention import AttentionSpec, TokenGrid, apply_plan
from ditquant.attention.install import replace_cores
from ditquant.attention.plan import AttentionPlan
from ditquant.calibration import run_prompts
from ditquant.calibration.attention import fit_runs
from ditquant.evaluation.generate import generate
from ditquant.evaluation.metrics import psnr_db
from ditquant.evaluation.steps import record, step_sqnr_db

DENSITIES = (0.5, 0.3, 0.2)
BOTH = ((0.3, 8), (0.5, 4))  # density and bits at once, as in the paper
SEED = 100
Install = Callable[[Any], Callable[[], None]]  # changes a transformer, and returns what undoes it


class Bench:
    """The pipeline, what it paints in full precision, and the plans that were fitted so far."""

    def __init__(self, pipeline: Any, fit: list[str], test: list[str], settings: dict[str, int | None]):
        self.pipeline, self.fit, self.test, self.settings = pipeline, fit, test, settings
        self.plans: dict[tuple, AttentionPlan] = {}
        made: list[Any] = []
        self.trajectory = record(pipeline, len(test), lambda: made.append(self.paint()))
        self.videos = made[0]

    @property
    def grid(self) -> TokenGrid:
        """The tokens of the test videos."""
        return next(iter(self.plans.values())).grid if self.plans else self.plan(AttentionSpec(qk_bits=8)).grid

    def paint(self) -> list[torch.Tensor]:
        """The test prompts' videos in one batch."""
        made = generate(
            self.pipeline, self.test, seeds=SEED, batch_size=len(self.test), progress=False, **self.settings
        )
        return [torch.from_numpy(video) for video in made.images]

    def plan(self, spec: AttentionSpec, reorder: bool = True) -> AttentionPlan:
        """Fit a plan; without reordering every head keeps the tokens' own order."""
        key = (spec.density, spec.select, reorder)
        if key not in self.plans:
            run = partial(run_prompts, self.pipeline, self.fit, settings=self.settings)
            self.plans[key] = fit_runs(self.pipeline.transformer, run, spec, reorder).plan
        return self.plans[key]

    def measure(self, install: Install) -> dict[str, float | list[float]]:
        """PSNR and step SQNR in decibels, means over the prompts; and the PSNR of each prompt."""
        undo = install(self.pipeline.transformer)
        try:
            steps, _ = step_sqnr_db(self.pipeline, self.trajectory)
            pairs = zip(self.videos, self.paint(), strict=True)
            psnr = [float(psnr_db(own, video)) for own, video in pairs]
        finally:
            undo()
        return {
            "psnr_db": round(statistics.fmean(psnr), 2),
            "worst_psnr_db": round(min(psnr), 2),
            "median_psnr_db": round(statistics.median(psnr), 2),
            "step_sqnr_db": round(statistics.fmean(steps), 2),
            "psnr_db_of_each": [round(value, 2) for value in psnr],
            "step_sqnr_db_of_each": [round(float(value), 2) for value in steps],
        }


def rows(bench: Bench) -> dict[str, Install]:
    """Every row of the table, by name."""

    def planned(
        density: float | None = None, bits: tuple = (None, None), reorder: bool = True, select: str | None = None
    ) -> Install:
        def install(transformer: Any) -> Callable[[], None]:
            spec = AttentionSpec(density, *(bits if any(bits) else (None, None)), select=select)
            plan = bench.plan(spec, reorder)
            qk, pv = bits
            plan = AttentionPlan(
                plan.grid, plan.orders, plan.masks, plan.steps, qk, pv, plan.density, timesteps=plan.timesteps
            )
            return apply_plan(transformer, plan)

        return install

    def online(rule: type, density: float) -> Install:
        return lambda transformer: replace_cores(transformer, lambda block, name: rule(bench.grid, density))

    table: dict[str, Install] = {}
    for density in DENSITIES:
        at = f"{density:.0%}"
        table[f"PARO {at}"] = planned(density)
        table[f"PARO {at}, orders by mass"] = planned(density, select="mass")
        table[f"{at}, without reordering"] = planned(density, reorder=False)
        table[f"SparseVideoGen-like {at}"] = online(SparseVideoGen, density)
        table[f"SpargeAttn-like {at}"] = online(SpargeAttn, density)
    table["PARO INT8"] = planned(bits=(8, 8))
    table["INT8, without reordering"] = planned(bits=(8, 8), reorder=False)
    sage = "SageAttention's recipe (QK INT8, PV floating point)"
    table[sage] = lambda transformer: replace_cores(transformer, lambda block, name: SageAttention())
    table["PARO INT4"] = planned(bits=(4, 4))
    table["INT4, without reordering"] = planned(bits=(4, 4), reorder=False)
    for density, bits in BOTH:
        table[f"PARO {density:.0%}, INT{bits}"] = planned(density, (bits, bits))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="video-shapes")
    parser.add_argument("--prompts", type=Path, help="one a line; the model's own captions by default")
    parser.add_argument("--fit", type=int, default=2)
    parser.add_argument("--test", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names begin with one of these")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "paro.json")
    asked = parser.parse_args()
    settings = {name: getattr(asked, name) for name in ("steps", "height", "width", "frames")}
    pipeline = sources.load_pipeline(asked.model, torch.float32)
    made_with = {"model": Path(asked.model).name, "weights": weights_hash(pipeline.transformer)}
    made_with |= {"fit": asked.fit, "test": asked.test, **settings}
    result = json.loads(asked.output.read_text()) if asked.output.exists() else {}
    if result.get("made with") != made_with:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        result = {"made with": made_with, "versions": versions, "rows": {}}
    fit, test = prompts(asked.prompts, asked.fit, asked.test)
    bench = Bench(pipeline, fit, test, settings)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    for name, install in rows(bench).items():
        if not name.startswith(tuple(asked.only)):
            continue
        if name not in result["rows"]:
            result["rows"][name] = bench.measure(install)
            asked.output.write_text(json.dumps(result, indent=1) + "\n")
        found = result["rows"][name]
        print(f"{name:>55} {found['psnr_db']:7.2f} dB  steps {found['step_sqnr_db']:6.2f} dB", flush=True)
    print(f"written: {asked.output}")


def weights_hash(model: torch.nn.Module) -> str:
    """Name the weights that rows belong to."""
    found = hashlib.sha256()
    for value in model.state_dict().values():
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def prompts(file: Path | None, fit: int, test: int) -> tuple[list[str], list[str]]:
    """Prompts to fit to, and others to test with: from a file, or captions that the shipped model has not seen."""
    if file is None:
        from ditquant.evaluation.moving_shapes import prompts as captions

        return captions(fit, seed=7, held_out=False), captions(test, seed=1)
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) < fit + test:
        raise SystemExit(f"{file} has {len(lines)} prompts, {fit + test} are needed")
    return lines[:fit], lines[fit : fit + test]


if __name__ == "__main__":
    main()
