"""Put a search together from a pipeline and a recipe: space, statistics, layers, score, cost, study."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ditquant.calibration import describe_models, run_prompts
from ditquant.engine import match
from ditquant.recipe import Recipe
from ditquant.search.cost import CostModel, measure_tokens
from ditquant.search.folder import Calibration, Found, found_of, only_transformer
from ditquant.search.layers import LayerCache, see_inputs
from ditquant.search.run import Budget, Searched, search
from ditquant.search.score import Scorer
from ditquant.search.space import Space
from ditquant.search.study import digests, open_study


@dataclass(frozen=True)
class Question:
    """What is searched: `conditions` are painted from `seed` on with `settings`, those of calibration and score."""

    recipe: Recipe
    conditions: Sequence[str | int]
    budget: str = "g128"
    groups: Sequence[int] | None = None
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


def search_model(
    pipeline: Any,
    question: Question,
    storage: str | Path,
    trials: int,
    study: str = "ditquant",
    seen: Callable[[int], object] = lambda done: None,
) -> tuple[Found, Searched]:
    """Search the group sizes of a full-precision pipeline, and return the best plan and all that was scored.

    Raises:
        DitQuantError: a recipe or group size that does not fit, a budget out of reach, a study of something else.
    """
    model = only_transformer(pipeline)
    matched = match(model, question.recipe)
    space = Space.of(matched, question.groups)
    scorer = Scorer(pipeline, question.conditions, question.seed, question.settings)
    modules = {name: model.get_submodule(name) for name in space.searched}
    costs = CostModel(measure_tokens(modules, len(question.conditions), scorer.see_truth))
    budget = Budget(question.budget, costs.budget(space, question.budget))
    digest = model_digest(pipeline)
    run = {
        "model": digest,
        "recipe": question.recipe.to_dict(),
        "score": [list(question.conditions), question.seed, dict(question.settings)],
        "group sizes": {name: list(sizes) for name, sizes in space.choices.items()},
        "budget": question.budget,
    }
    opened = open_study(storage, study, run, question.seed)
    calibration = Calibration(list(question.conditions), question.seed, dict(question.settings))

    def paint() -> None:
        run_prompts(pipeline, calibration.conditions, calibration.seed, calibration.settings)

    stats = see_inputs(model, matched, paint, calibration.seed)
    layers = LayerCache(model, space, stats, calibration.seed)
    searched = search(opened, space, layers, scorer, costs, budget, trials, seen)
    return found_of(searched, layers, question.recipe, digest, calibration), searched


def model_digest(pipeline: Any) -> str:
    """Return what tells a pipeline's transformer and scheduler from others."""
    part = SimpleNamespace(name="", model=only_transformer(pipeline))
    return digests({"model": describe_models(pipeline, [part])})["model"]
