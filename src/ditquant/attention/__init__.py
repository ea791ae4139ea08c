"""Attention of visual tokens in an order of its own for every head, over a static mask of tiles, in integers."""

from ditquant.attention.compiled import use_compiled_attention
from ditquant.attention.criterion import Criterion, OrderScores
from ditquant.attention.fit import AttentionFit, fit_attention
from ditquant.attention.grid import ORDERS, TILE, TokenGrid
from ditquant.attention.install import StepClock, apply_plan, record_attention
from ditquant.attention.plan import AttentionPlan, step_bins
from ditquant.attention.plan_file import load_plan, save_plan
from ditquant.attention.reordered import attend
from ditquant.attention.spec import AttentionSpec

__all__ = [
    "ORDERS",
    "TILE",
    "AttentionFit",
    "AttentionPlan",
    "AttentionSpec",
    "Criterion",
    "OrderScores",
    "StepClock",
    "TokenGrid",
    "apply_plan",
    "attend",
    "fit_attention",
    "load_plan",
    "record_attention",
    "save_plan",
    "step_bins",
    "use_compiled_attention",
]
