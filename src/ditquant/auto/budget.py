"""Choose format and bits of every layer within a budget, by how much the model's prediction feels their error."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ditquant.auto.clock import Clock
from ditquant.auto.front import Choice, Point, Way, by_size, by_time, descend, point
from ditquant.auto.ways import BASE, measure
from ditquant.calibration import MAX_CALLS, WorkFolder, describe_models
from ditquant.engine import check_alone, match, runner
from ditquant.errors import DitQuantError
from ditquant.integrations.diffusers import transformers_of
from ditquant.recipe import Recipe, Rule


@dataclass(frozen=True)
class Auto:
    """What was chosen, as a recipe with a rule a layer, and the front that it lies on."""

    recipe: Recipe
    chosen: Point
    front: tuple[Point, ...]


@torch.no_grad()
def choose(
    model: Any,
    bits: float | None = None,
    latency_ms: float | None = None,
    *,
    prompts: Sequence[str | int] | None = None,
    forward: Callable[[nn.Module], object] | None = None,
    seed: int = 0,
    max_calls: int = MAX_CALLS,
    settings: Mapping[str, float | None] | None = None,
    base: str | Mapping[str, Any] | Recipe = BASE,
    clock: Clock | None = None,
    work_dir: str | os.PathLike | None = None,
) -> Auto:
    """Return the recipe of least error within a budget; the model stays as it is.

    The budget is either `bits` a weight, all-in, or `latency_ms`: the sum over the layers of one call of the
    transformer, each measured alone on this machine, in the model's dtype, on the rows of a calibration call. A `clock`
    may bring a table, and holds what was measured afterwards.

    `work_dir` keeps the ways that are measured: killed and called again with equal arguments the run goes on at the
    block where it was, and another budget of the same kind is spent at once. Delete the folder afterwards.

    Every layer may have Twin-Log weights of 2 to 4 bits, uniform ones of 3 to 8, or stay in floating point; all else
    is as `base` says.

    Raises:
        DitQuantError: no budget or two, no data, several transformers, a budget that cannot be reached, or a work
            folder of another run.
    """
    check_budget(bits, latency_ms)
    if prompts is None and forward is None:
        raise DitQuantError("choosing bits needs calibration. Give prompts=, or forward= for a module.")
    parts = transformers_of(model)
    if len(parts) != 1:
        raise DitQuantError(f"bits are chosen for one transformer at a time, this pipeline has {', '.join(parts)}.")
    [(name, part)] = parts.items()
    rules = Recipe.load(base)
    matched = match(part, rules)
    run = runner(model, prompts, forward, seed, settings or {})
    clock = None if latency_ms is None else clock or Clock()
    kept = None
    if work_dir is not None:
        check_alone()
        about = {"recipe": rules.makes(), "prompts": prompts and list(prompts), "forward": forward is not None}
        about |= {"seed": seed, "settings": settings or {}, "max_calls": max_calls, "kind of budget": bits is None}
        kept = WorkFolder(work_dir, describe_models(model, parts) | about)
    ways = measure(name, part, matched, run, seed, max_calls, clock, kept)
    return spend(ways, sum(layer.parameters for layer, _ in matched), bits, latency_ms)


def check_budget(bits: float | None, latency_ms: float | None) -> None:
    """Refuse no budget, two of them, and one that is no positive number."""
    if bits is None and latency_ms is None:
        raise DitQuantError("no budget is given. Give bits a weight, such as 4, or milliseconds of a call's layers.")
    if bits is not None and latency_ms is not None:
        raise DitQuantError("two budgets are given, bits and milliseconds. Leave one of them out.")
    for value, unit in ((bits, "bits a weight"), (latency_ms, "ms")):
        if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise DitQuantError(f"a budget of {value} {unit} is not allowed. Choose a positive number.")


def spend(
    ways: Mapping[str, Sequence[Way]], weights: int, bits: float | None = None, latency_ms: float | None = None
) -> Auto:
    """Return the recipe of least error within a budget, from the measured ways of all layers."""
    check_budget(bits, latency_ms)
    path = descend(ways, by_time if bits is None else by_size)
    front = tuple(point(choice, ways, weights) for choice in path)
    costs = [p.ms if bits is None else p.bits for p in front]
    fitting = [i for i, cost in enumerate(costs) if cost <= (latency_ms if bits is None else bits)]
    if not fitting:
        raise _too_small(bits, latency_ms, costs[0], ways)
    return Auto(_recipe(path[fitting[-1]], bits, latency_ms), front[fitting[-1]], front)


def _recipe(choice: Choice, bits: float | None, latency_ms: float | None) -> Recipe:
    rules = [Rule(n, None) if w.rule is None else replace(w.rule, target=n) for n, w in choice.items()]
    return Recipe(f"auto-{latency_ms:g}ms" if bits is None else f"auto-{bits:g}", tuple(rules))


def _too_small(
    bits: float | None, latency_ms: float | None, least: float, ways: Mapping[str, Sequence[Way]]
) -> DitQuantError:
    if bits is not None:
        return DitQuantError(f"a budget of {bits:g} bits a weight is too small. Choose at least {_up(least):g}.")
    full = math.fsum(way.ms for found in ways.values() for way in found if way.rule is None)
    return DitQuantError(
        f"a budget of {latency_ms:g} ms is too small: here the layers of one call take at least {_up(least):g} ms, "
        f"and {full:.4g} ms in full precision. Choose at least {_up(least):g}."
    )


def _up(value: float) -> float:
    """Round up to what can be typed and is enough, in steps of a thousandth of the value's power of ten."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return math.ceil(value / step) * step
