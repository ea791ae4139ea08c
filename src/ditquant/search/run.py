"""Run a search: every candidate is a plan, its error and its cost; the best one within the budget is deployed."""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ditquant import distributed
from ditquant.search.cost import Cost, CostModel
from ditquant.search.layers import LayerCache
from ditquant.search.population import children, join
from ditquant.search.score import Scorer, mean
from ditquant.search.space import Genome, Space
from ditquant.search.study import POPULATION


@dataclass(frozen=True)
class Budget:
    """The largest total cost, and the words that it was asked for in."""

    text: str
    total: float


@dataclass(frozen=True)
class Candidate:
    """A genome with its cost and the error of every sample; `label` where all layers have one group size.

    `fresh` are the errors on seeds that nothing was chosen by, of the best candidates alone.
    """

    genome: Genome
    cost: Cost
    errors: tuple[float, ...]
    label: str = ""
    fresh: tuple[float, ...] = ()

    @property
    def error(self) -> float:
        """The mean error of the samples."""
        return mean(self.errors)


@dataclass(frozen=True)
class Searched:
    """All candidates that were scored, in order of error."""

    budget: Budget
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def best(self) -> Candidate:
        """The candidate to deploy: of least error within the budget, on fresh seeds where some were painted again."""
        affordable = [c for c in self.candidates if c.cost.total <= self.budget.total]
        confirmed = [c for c in affordable if c.fresh]
        return min(confirmed, key=lambda c: mean(c.fresh)) if confirmed else affordable[0]

    @property
    def front(self) -> list[Candidate]:
        """The candidates that no other beats in both error and cost, in order of error."""
        front: list[Candidate] = []
        for candidate in self.candidates:
            if not front or candidate.cost.total < front[-1].cost.total:
                front.append(candidate)
        return front


def search(
    study: Any,
    space: Space,
    layers: LayerCache,
    scorer: Scorer,
    costs: CostModel,
    budget: Budget,
    trials: int,
    starts: Sequence[Genome] = (),
    seen: Callable[[int], object] = lambda done: None,
) -> Searched:
    """Score candidates until the study has `trials` of them; `seen` is told how many there are.

    Uniform ones come first, then `starts`, then children of those that the budget can pay, as many as random ones are
    drawn to complete the first population.

    The study holds everything: killed and called again the search goes on, and other workers may share it. Every rank
    is one of them.
    """
    from optuna.trial import TrialState

    def finished() -> list[Any]:
        return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def objective(trial: Any) -> tuple[float, float]:
        join(study, trial.number)
        genome = space.suggest(trial)
        cost = costs.of(space, genome)
        trial.set_constraint("budget", cost.total - budget.total)
        errors = next((t.user_attrs["errors"] for t in finished() if t.params == trial.params), None)
        if errors is None:
            with layers.in_place(layers.candidate(genome)):
                errors = scorer.errors()
        trial.set_user_attr("errors", errors)
        trial.set_user_attr("worker", f"{socket.gethostname()}-{os.getpid()}")
        return mean(errors), cost.total

    # the first one is the cheapest, which every budget can pay
    first = [costs.cheapest(space), *reversed(space.uniforms().values()), *starts]
    parents = [genome for genome in starts if costs.of(space, genome).total <= budget.total]
    first += children(space, parents, (min(POPULATION, trials) - len(first)) // 2)
    for genome in first if distributed.is_main() else ():
        known = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.WAITING))
        drawn = space.drawn(genome)
        if not any(drawn in (t.params, t.system_attrs.get("fixed_params")) for t in known):
            study.enqueue_trial(drawn)
    distributed.gather(None)  # nobody draws before these wait
    seen(len(finished()))
    while len(finished()) < trials:
        study.optimize(objective, n_trials=1)
        seen(len(finished()))
    distributed.gather(None)  # the last ones of all ranks count
    return Searched(budget, _candidates(space, costs, finished()))


def _candidates(space: Space, costs: CostModel, trials: Sequence[Any]) -> list[Candidate]:
    """Return the candidates of finished trials, each once, the least error first and the cheaper one of equals."""
    labels = {tuple(sorted(space.drawn(genome).items())): label for label, genome in space.uniforms().items()}
    found: dict[tuple, Candidate] = {}
    for trial in trials:
        key, genome = tuple(sorted(trial.params.items())), space.genome(trial.params)
        errors = tuple(trial.user_attrs["errors"])
        found[key] = Candidate(genome, costs.of(space, genome), errors, labels.get(key, ""))
    return sorted(found.values(), key=lambda c: (c.error, c.cost.total))
