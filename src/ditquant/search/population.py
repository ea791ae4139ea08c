"""The first population of a search: what it starts from, and children of the starts that the budget can pay."""

import random
from collections.abc import Sequence
from typing import Any

from ditquant.search.space import Genome, Space
from ditquant.search.study import MUTATION


def children(space: Space, parents: Sequence[Genome], count: int, seed: int = 0) -> list[Genome]:
    """Cross pairs of parents layer by layer and mutate; none of fewer than two parents."""
    if len(parents) < 2:
        return []
    draw = random.Random(seed)
    found: list[Genome] = []
    for _ in range(count):
        pair = draw.sample(parents, 2)
        child = {name: draw.choice(pair)[name] for name in space.choices}
        mutated = {name: draw.choice(space.offers(name)) for name in child if draw.random() < MUTATION}
        found.append(child | mutated)
    return found


def join(study: Any, number: int) -> None:
    """Count a trial as a member of its generation; Optuna's samplers leave out those that were given, not drawn."""
    study.sampler.get_trial_generation(study, study.get_trials(deepcopy=False)[number])
