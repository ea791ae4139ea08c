"""Search for the group size of every layer (Q-DiT, arXiv 2406.17343): genes, cost, score, study, plan."""

from ditquant.search.cost import Cost, CostModel, measure_tokens
from ditquant.search.folder import Calibration, Found, deploy, found_of, load_found, save_found
from ditquant.search.latency import Latencies
from ditquant.search.layers import LayerCache, see_inputs
from ditquant.search.models import Models
from ditquant.search.run import Budget, Candidate, Searched, search
from ditquant.search.score import Scorer
from ditquant.search.space import GROUPS, Gene, Genome, Space
from ditquant.search.study import digests, open_study

__all__ = [
    "GROUPS",
    "Budget",
    "Calibration",
    "Candidate",
    "Cost",
    "CostModel",
    "Found",
    "Gene",
    "Genome",
    "Latencies",
    "LayerCache",
    "Models",
    "Scorer",
    "Searched",
    "Space",
    "deploy",
    "digests",
    "found_of",
    "load_found",
    "measure_tokens",
    "open_study",
    "save_found",
    "search",
    "see_inputs",
]
