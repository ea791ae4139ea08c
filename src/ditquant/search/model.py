"""Put a search together from a pipeline and a recipe: space, statistics, layers, score, cost, study."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ditquant import distributed
from ditquant.calibration import collect, describe_models, run_prompts
from ditquant.recipe import Recipe
from ditquant.search.confirm import confirm
from ditquant.search.cost import CostModel, measure_tokens
from ditquant.search.folder import Calibration, Found, found_of
from ditquant.search.latency import Latencies
from ditquant.search.layers import LayerCache, see_inputs
from ditquant.search.models import Models
from ditquant.search.run import Budget, Searched, search
from ditquant.search.score import Scorer
from ditquant.search.space import Space
from ditquant.search.start import felt, starts
from ditquant.search.study import digests, open_study
from ditquant.stats import LayerStats


@dataclass(frozen=True)
class Question:
    """What is searched: `conditions` are painted from `seed` on with `settings`, those of calibration and score."""

    recipe: Recipe
    conditions: Sequence[str | int]
    budget: str = "g128"
    groups: Sequence[int] | None = None
    genes: Sequence[str] = ("groups",)
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


def search_model(
    pipeline: Any,
    question: Question,
    storage: str | Path,
    trials: int,
    study: str = "ditquant",
    latency: Path | None = None,
    then: Callable[[Searched, LayerCache, Scorer], object] = lambda *_: None,
    seen: Callable[[int], object] = lambda done: None,
) -> tuple[Found, Searched]:
    """Search the genes of a full-precision pipeline, and return the best plan and all that was scored.

    `then` is given what was scored, with what made and painted it.

    Raises:
        DitQuantError: a recipe or group size that does not fit, a budget out of reach, a study of something else.
    """
    models = Models.of(pipeline)
    matched = models.match(question.recipe)
    space = Space.of(matched, question.groups, question.genes)
    scorer = Scorer(pipeline, question.conditions, question.seed, question.settings)
    modules = {name: models.root.get_submodule(name) for name in space.searched}
    inputs: dict[str, LayerStats] = {}

    def paint() -> None:
        inputs.update(collect(modules, scorer.see_truth))

    tokens = measure_tokens(modules, len(question.conditions), paint, models.part_of)
    calibration = Calibration(list(question.conditions), question.seed, dict(question.settings))

    def calibrate() -> None:
        run_prompts(pipeline, calibration.conditions, calibration.seed, calibration.settings)

    offered = (space.rule(name, gene) for name in modules for gene in space.offers(name))
    stats = see_inputs(models.root, matched, calibrate, question.seed, offered)
    layers = LayerCache(models.root, space, stats, question.seed)
    costs = CostModel(tokens, None if latency is None else Latencies(latency, layers, tokens).ms)
    budget = Budget(question.budget, costs.budget(space, question.budget))
    digest = model_digest(pipeline)
    run = {
        "model": digest,
        "recipe": question.recipe.makes(),
        "score": [list(question.conditions), question.seed, dict(question.settings)],
        "genes": {key: list(values) for key, values in space.parameters().items()},
        "budget": [question.budget, budget.total if latency is not None else None],
    }
    opened = open_study(storage, study, run, question.seed)
    if distributed.from_main("felt" not in opened.user_attrs):
        opened.set_user_attr("felt", felt(layers, scorer, inputs))
    totals = [budget.total, *(costs.of(space, genome).total for genome in space.uniforms().values())]
    first = starts(layers, costs, opened.user_attrs["felt"], inputs, totals)
    searched = search(opened, space, layers, scorer, costs, budget, trials, first, seen)
    searched = confirm(opened, searched, layers, scorer)
    then(searched, layers, scorer)
    return found_of(searched, layers, question.recipe, digest, calibration), searched


def model_digest(pipeline: Any) -> str:
    """Return what tells a pipeline's transformers and scheduler from others."""
    return digests({"model": describe_models(pipeline, Models.of(pipeline).parts)})["model"]
