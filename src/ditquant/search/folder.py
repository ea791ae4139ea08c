"""What a search leaves: plan.json to deploy, trials.json with every candidate, and front.png."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ditquant.atomic import atomic_file
from ditquant.calibration import run_prompts
from ditquant.errors import DitQuantError
from ditquant.evaluation.plots import MissingMatplotlib, plot_front
from ditquant.recipe import Recipe
from ditquant.search.finalists import Final
from ditquant.search.layers import LayerCache, see_inputs
from ditquant.search.models import Models
from ditquant.search.run import Candidate, Searched
from ditquant.search.space import Space
from ditquant.specs import QuantPlan

PLAN, TRIALS, FRONT, JOURNAL = "plan.json", "trials.json", "front.png", "journal.log"
VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """What the statistics are taken on, where a recipe needs them: the full-precision model on these conditions."""

    conditions: Sequence[str | int]
    seed: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """A plan to deploy: a rule for every layer, what the rules come to, the model's digest and the calibration."""

    recipe: Recipe
    plan: QuantPlan
    model: str
    calibration: Calibration


def save_found(folder: Path, found: Found, searched: Searched, finals: Sequence[Final] = ()) -> None:
    """Write the plan, all candidates, finalists and the plot into a folder; what was there before is replaced."""
    plan = {
        "version": VERSION,
        "model": found.model,
        "calibration": asdict(found.calibration),
        "recipe": found.recipe.to_dict(),
        "plan": found.plan.to_dict(),
        "found": _row(searched.best),
    }
    trials = {"budget": asdict(searched.budget), "candidates": [_row(c) for c in searched.candidates]}
    if finals:
        trials["finalists"] = [{"name": final.name, "distance": final.distance} for final in finals]
    for name, data in {PLAN: plan, TRIALS: trials}.items():
        with atomic_file(folder / name, overwrite=True) as part:
            part.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    try:
        picture = plot_front(
            [(c.cost.total, c.error) for c in searched.candidates],
            [(c.cost.total, c.error) for c in searched.front],
            {c.label: (c.cost.total, c.error) for c in searched.candidates if c.label},
            searched.budget.total,
            "Error and cost of the candidates",
        )
    except MissingMatplotlib:
        return
    with atomic_file(folder / FRONT, overwrite=True) as part:
        part.write_bytes(picture)


def load_found(folder: str | Path) -> Found:
    """Read the plan of a search.

    Raises:
        DitQuantError: no such folder, a search that has not ended, or a file that is no plan.
    """
    path = Path(folder) / PLAN
    if not path.is_file():
        unfinished = " Its search has not ended: give the same search command again." if _has_journal(path) else ""
        raise DitQuantError(f"{str(folder)!r} holds no {PLAN}.{unfinished or ' Give the folder of ditquant search.'}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] > VERSION:
            raise DitQuantError(f"{path} has version {data['version']}, this ditquant reads {VERSION}. Update it.")
        recipe = Recipe.from_dict(data["recipe"], what=f"the recipe in {path}")
        calibration = Calibration(**data["calibration"])
        return Found(recipe, QuantPlan.from_dict(data["plan"]), data["model"], calibration)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DitQuantError):
            raise
        raise DitQuantError(f"{path} is no plan ({type(error).__name__}: {error}). Search again.") from None


@torch.no_grad()
def deploy(pipeline: Any, found: Found, digest: str) -> QuantPlan:
    """Quantize a pipeline in place with a plan; equal to the bit to the candidate that was scored.

    Raises:
        DitQuantError: another model than the one searched, or an installation that makes another plan of its rules.
    """
    if digest != found.model:
        raise DitQuantError(
            "the plan was found for other weights, or for another dtype or device. Give the model that was searched, "
            "with the same --dtype and --device, or search this one."
        )
    models, calibration = Models.of(pipeline), found.calibration
    matched = models.named(found.recipe.rules)

    def run() -> None:
        run_prompts(pipeline, calibration.conditions, calibration.seed, calibration.settings)

    stats = see_inputs(models.root, matched, run, calibration.seed)
    space = Space({}, {layer.name: (layer, rule) for layer, rule in matched}, {})
    layers = LayerCache(models.root, space, stats, calibration.seed)
    made = layers.candidate({})
    entries = {name: linear.plan for name, linear in made.items()}
    plan = QuantPlan(entries, found.recipe.name, thresholds=found.recipe.thresholds)
    if plan.hash() != found.plan.hash():
        raise DitQuantError("the rules of the plan make another plan here. Search again with this version.")
    layers.put(made)
    models.mark(plan)
    return plan


def found_of(searched: Searched, layers: LayerCache, recipe: Recipe, model: str, calibration: Calibration) -> Found:
    """Write the best candidate out as the plan that is deployed."""
    name, genome = f"{recipe.name}-searched", searched.best.genome
    rules = tuple(layers.space.rules(genome).values())
    entries = {key: linear.plan for key, linear in layers.candidate(genome).items()}
    plan = QuantPlan(entries, name, thresholds=recipe.thresholds)
    return Found(Recipe(name, rules, recipe.description, thresholds=recipe.thresholds), plan, model, calibration)


def _row(candidate: Candidate) -> dict[str, Any]:
    return {
        "label": candidate.label,
        "error": candidate.error,
        "errors": list(candidate.errors),
        "fresh_errors": list(candidate.fresh),
        "cost": asdict(candidate.cost),
        "genome": {name: asdict(gene) for name, gene in candidate.genome.items()},
    }


def _has_journal(path: Path) -> bool:
    return (path.parent / JOURNAL).exists()
