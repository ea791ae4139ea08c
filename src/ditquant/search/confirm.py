"""The best candidates once more, on seeds that they were not chosen by.

The least of many errors that few samples measure is one that the samples flatter. So the first candidates within the
budget are painted again from other seeds, several times as many, and the one of least error there is deployed.
"""

import hashlib
import json
from dataclasses import replace
from typing import Any

import torch

from ditquant import distributed
from ditquant.progress import bar
from ditquant.search.layers import LayerCache
from ditquant.search.run import Candidate, Searched
from ditquant.search.score import Scorer

COUNT, ROUNDS = 8, 4  # candidates, and how often each paints all conditions
SEED_FRESH = 500_000


@torch.no_grad()
def confirm(study: Any, searched: Searched, layers: LayerCache, scorer: Scorer) -> Searched:
    """Return what was scored, with errors on fresh seeds where a candidate is among the best within the budget.

    The study keeps them; ranks share the candidates.
    """
    affordable = [c for c in searched.candidates if c.cost.total <= searched.budget.total]
    best = {_key(layers, candidate): candidate for candidate in affordable[:COUNT]}
    missing = distributed.mine(distributed.from_main([key for key in best if key not in study.user_attrs]))
    if missing:
        scorers = [replace(scorer, seed=scorer.seed + SEED_FRESH + r * len(scorer.conditions)) for r in range(ROUNDS)]
        for one in scorers:
            one.see_truth()
        for key in bar(missing, desc="fresh seeds", unit="candidate"):
            with layers.in_place(layers.candidate(best[key].genome)):
                study.set_user_attr(key, [e for one in scorers for e in one.errors()])
    distributed.gather(None)  # all ranks have written theirs
    fresh = {id(candidate): tuple(study.user_attrs[key]) for key, candidate in best.items()}
    return replace(searched, candidates=[replace(c, fresh=fresh.get(id(c), ())) for c in searched.candidates])


def _key(layers: LayerCache, candidate: Candidate) -> str:
    drawn = json.dumps(layers.space.drawn(candidate.genome), sort_keys=True)
    return f"fresh {hashlib.sha256(drawn.encode()).hexdigest()[:16]}"
