"""Fit the attention of a model while it runs: once for the orders, once more for the tiles; no map is kept.

Every call of every step is seen, in both guidance branches.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ditquant.attention import AttentionSpec, StepClock, TokenGrid, record_attention, step_bins
from ditquant.attention.fit import AttentionFit, plan_of_orders, with_masks
from ditquant.attention.install import attention_layers
from ditquant.attention.kinds import kind_of
from ditquant.attention.seen import SeenOrders, SeenTiles
from ditquant.errors import DitQuantError


class Watch:
    """Follows the calls of a model: their step, their timesteps, and the grid of their tokens."""

    def __init__(self, model: nn.Module):
        self.model, self.kind, self.clock = model, kind_of(model), StepClock()
        self.layers = attention_layers(model)
        self.grid: TokenGrid | None = None
        self.timesteps: dict[int, float] = {}
        self._signature = inspect.signature(model.forward)

    @contextmanager
    def recording(self, see: Callable[[int, str, Tensor, Tensor], None]) -> Iterator[None]:
        """Within, hand block, name, q and k of every attention to `see`; the outputs stay the same."""
        undo = [
            self.clock.follow(self.model),
            self.model.register_forward_pre_hook(self._note, with_kwargs=True).remove,
            record_attention(self.model, lambda block, q, k: see(block, self.layers[block], q, k)),
        ]
        try:
            yield
        finally:
            for stop in reversed(undo):
                stop()

    def _note(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arguments = self._signature.bind_partial(*args, **kwargs).arguments
        grid = self.kind.grid(self.model.config, arguments)
        if self.grid not in (None, grid):
            raise DitQuantError(f"the runs have {self.grid} and {grid}. Fit a plan on prompts of one size.")
        self.grid = grid
        if self.clock.timestep is not None:
            self.timesteps[self.clock.step] = self.clock.timestep


def fit_runs(model: nn.Module, run: Callable[[], object], spec: AttentionSpec, reorder: bool = True) -> AttentionFit:
    """Fit a plan to what `run()` makes a model do, which is asked once, and once more if tiles are left out.

    Without `reorder` every head keeps the tokens' own order, as a measure of what the orders bring.

    Raises:
        DitQuantError: a class of model without a processor, a run that does not reach the model, runs of several
            sizes, NaN in q or k (names layer and head), a density that is too small.
    """
    watch, seen = Watch(model), []

    def see_orders(block: int, name: str, q: Tensor, k: Tensor) -> None:
        if not seen:
            seen.append(SeenOrders(watch.grid, spec.criterion, spec.density or 1.0))
        seen[0].add(block, q, k, name)

    with watch.recording(see_orders):
        run()
    if not seen:
        raise DitQuantError(f"the calibration never reached {type(model).__name__}, no attention was seen.")
    scores, count = seen[0].scores(), max(watch.timesteps, default=0) + 1
    own = None if spec.own_steps is None else min(spec.own_steps, count)
    steps, bits = step_bins(count, own), (spec.qk_bits, spec.pv_bits)
    if max(steps) == 0 or spec.density is None:
        steps = (0,) * count
    timesteps = tuple(watch.timesteps[step] for step in range(count)) if watch.timesteps else ()
    plan = plan_of_orders(scores, watch.grid, spec.criterion, steps, *bits, timesteps)
    if not reorder:
        plan = replace(plan, orders=torch.zeros_like(plan.orders))
    if spec.density is None:
        return AttentionFit(plan, scores, None, None)
    tiles = SeenTiles(watch.grid, plan.orders)
    with watch.recording(lambda block, name, q, k: tiles.add(steps[watch.clock.step], block, q, k, name)):
        run()
    return with_masks(plan, scores, tiles.sums(max(steps) + 1), steps, spec.density)
