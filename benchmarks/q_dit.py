"""Measure Q-DiT on `dit-digits`: its ladder, and the scan over group sizes with and without two defects.

    python benchmarks/q_dit.py --plan plan/          # writes benchmarks/results/q_dit.json

Error: |z - z_full|² / |z_full|² of final latents from equal seeds, mean of all samples, with a 95 % bootstrap interval;
`accuracy` is that of the class asked for, `fd` the Fréchet distance of the classifier's features from the held-out
digits. The samples' seeds begin at 2,000,000: none of them was searched or calibrated with.

Ladder: one scale a row and one for all activations of a call; + groups of 128 in the weights; + the same groups in the
activations of every token; + a searched plan. Differs from the paper's first steps, whose activation scales are static.

Defects of other implementations, put back in to see what they do: `clamped` computes a zero point without extending
the range to zero and clamps it; `stale` gives GPTQ's groups the scales of the weights as they were at the last
multiple of 128 columns.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from ditquant import sources
from ditquant.calibration import run_prompts
from ditquant.engine import match
from ditquant.evaluation.digits import Judge, class_accuracy
from ditquant.evaluation.generate import Generated, generate
from ditquant.evaluation.intervals import interval, paired_interval
from ditquant.evaluation.metrics.distribution import frechet_distance
from ditquant.quantizers import affine_fit
from ditquant.recipe import Recipe, Rule
from ditquant.search import LayerCache, Space, load_found, see_inputs
from ditquant.specs import ActSpec

FIRST_SEED = 2_000_000
GROUPS = (32, 48, 64, 96, 128, 192, 384)
BLOCK = 128


def clamped(grouped: Tensor, spec, ratio: Tensor) -> dict[str, Tensor]:
    """Range from minimum to maximum, and a zero point that is clamped into the codes."""
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = (high - low) / (2**spec.bits - 1)
    zero = torch.round(-low / torch.where(scale > 0, scale, 1)).clamp(0, 2**spec.bits - 1)
    return {"scale": scale, "zero_point": zero.to(torch.uint8)}


def stale(weight: Tensor, factor, width: int, block_size: int, rounding) -> Tensor:
    """Compensate as GPTQ does, but enter a group with the weights that its block of 128 columns began with."""
    channels, share = factor.channels, factor.share()
    columns = weight.T[channels]
    codes = torch.empty(columns.shape, dtype=torch.uint8)
    for start in range(0, len(columns), BLOCK):
        end = min(start + BLOCK, len(columns))
        before, errors = columns.clone(), torch.empty_like(columns[start:end])
        for k in range(start, end):
            if k % width == 0:
                group = channels[k : k + width]
                rounding.enter(int(group[0]) // width, before[k : k + width][group.argsort()])
            codes[channels[k]], rounded = rounding.round(columns[k])
            errors[k - start] = columns[k] - rounded
            columns[k + 1 : end].addcmul_(share[k, k + 1 : end, None], errors[k - start], value=-1)
        columns[end:].addmm_(share[start:end, end:].T, errors, alpha=-1)
    return codes.T.contiguous()


class Runner:
    """The pipeline, what full precision makes of all samples, and the statistics that GPTQ needs."""

    def __init__(self, args: argparse.Namespace):
        self.pipeline = sources.load_pipeline("dit-digits", torch.float32)
        self.model = self.pipeline.transformer
        self.judge = Judge.load()
        self.args = args
        self.labels = [i % 10 for i in range(args.samples)]
        self.truth = [self.paint(seed) for seed in range(args.seeds)]
        matched = match(self.model, Recipe.load("qdit-gptq-w4a8"))
        settings = {"steps": args.steps, "guidance": args.guidance}
        self.stats = see_inputs(self.model, matched, lambda: run_prompts(self.pipeline, range(10), 0, settings))

    def paint(self, seed: int) -> Generated:
        first = FIRST_SEED + seed * self.args.samples
        options = {"steps": self.args.steps, "guidance": self.args.guidance, "batch_size": 20, "progress": False}
        return generate(self.pipeline, self.labels, seeds=first, **options)

    def errors(self, rules: list[Rule]) -> dict:
        """Paint with the model quantized by rules; every seed's samples."""
        matched = match(self.model, Recipe("benchmark", tuple(rules)))
        fixed = {layer.name: (layer, rule) for layer, rule in matched}
        with LayerCache(self.model, Space({}, fixed, {}), self.stats).in_place({}):
            made = [self.paint(seed) for seed in range(self.args.seeds)]
        return self.measure(made)

    def measure(self, made: list[Generated]) -> dict:
        errors: list[float] = []
        for truth, found in zip(self.truth, made, strict=True):
            z, full = found.latents.double().flatten(1), truth.latents.double().flatten(1)
            errors += ((z - full).square().sum(1) / full.square().sum(1)).tolist()
        seen = self.judge.see([image for part in made for image in part.images])
        right = class_accuracy(seen.logits, self.labels * self.args.seeds)
        low, high = interval(errors)
        return {
            "error": float(np.mean(errors)),
            "low": low,
            "high": high,
            "accuracy": float(np.mean(right)),
            "fd": frechet_distance(seen.features, self.judge.reference.features),
            "errors": errors,
        }


def uniform(recipe: str, weight: int | None, activation: int | str | None) -> list[Rule]:
    """A recipe's rules with other groups; activation "tensor" has one scale for a whole call."""
    rules = []
    for rule in Recipe.load(recipe).rules:
        if rule.activation is not None:
            acts = ActSpec(rule.activation.bits, "tensor", symmetric=False)
            if activation != "tensor":
                acts = ActSpec(rule.activation.bits, "group", activation, symmetric=False)
            rule = replace(rule, weight=replace(rule.weight, group_size=weight), activation=acts)
        elif rule.weight.group_size:
            rule = replace(rule, weight=replace(rule.weight, group_size=weight))
        rules.append(rule)
    return rules


def ladder(run: Runner, bits: str, plan: Path | None) -> dict:
    steps = {
        "RTN per row, activations per call": (f"qdit-{bits}", None, "tensor"),
        "+ groups of 128": (f"qdit-{bits}", 128, "tensor"),
        "+ dynamic activations per token and group": (f"qdit-{bits}", 128, 128),
        "the same with GPTQ": (f"qdit-gptq-{bits}", 128, 128),
    }
    found = {label: shown(label, lambda s=step: run.errors(uniform(*s))) for label, step in steps.items()}
    if plan is not None:
        recipe = load_found(plan).recipe
        before = found["+ dynamic activations per token and group"]["errors"]
        found["+ allocation"] = shown("+ allocation", lambda: run.errors(list(recipe.rules)))
        found["+ allocation"]["below uniform 128"] = paired_interval(before, found["+ allocation"]["errors"])
    return found


def scan(run: Runner, bits: str) -> dict:
    found = {}
    with_clamp = mock.patch.object(affine_fit, "_params", clamped)
    for group in run.args.groups:
        for quantizer in ("qdit", "qdit-gptq"):
            rules = uniform(f"{quantizer}-{bits}", group, group)
            label = f"{quantizer} g = {group}"
            found[label] = shown(label, lambda r=rules: run.errors(r))
            with with_clamp:
                found[f"{label}, clamped"] = shown(f"{label}, clamped", lambda r=rules: run.errors(r))
        with mock.patch.object(sys.modules["ditquant.quantizers.gptq"], "_compensate", stale):
            found[f"{label}, stale"] = shown(f"{label}, stale", lambda r=rules: run.errors(r))
    return found


def shown(label: str, measure: Callable[[], dict]) -> dict:
    start = time.perf_counter()
    found = measure()
    print(
        f"{label}: error {found['error']:.5f} [{found['low']:.5f}, {found['high']:.5f}], "
        f"accuracy {found['accuracy']:.3f}, fd {found['fd']:.2f}, {time.perf_counter() - start:.1f} s",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--plan", type=Path, help="folder of ditquant search, for the last step of the ladder")
    parser.add_argument("--bits", nargs="*", default=["w4a8", "w3a8"])
    parser.add_argument("--groups", nargs="*", type=int, default=GROUPS, help="group sizes of the scan")
    parser.add_argument("--only", choices=["ladder", "scan"])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "q_dit.json")
    args = parser.parse_args()
    run = Runner(args)
    results: dict = {"full precision": shown("full precision", lambda: run.measure(run.truth))}
    for bits in args.bits:
        plan = args.plan if args.plan and bits in load_found(args.plan).recipe.name else None
        results[bits] = {} if args.only == "scan" else {"ladder": ladder(run, bits, plan)}
        results[bits] |= {} if args.only == "ladder" else {"scan": scan(run, bits)}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("output", "plan")}
    data = {"settings": settings, "torch": torch.__version__, "machine": platform.machine(), "results": results}
    args.output.write_text(json.dumps(without_samples(data), indent=1) + "\n")


def without_samples(data):
    if isinstance(data, dict):
        return {key: without_samples(value) for key, value in data.items() if key != "errors"}
    return data


if __name__ == "__main__":
    main()
