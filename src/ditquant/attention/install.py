"""Let a diffusers model attend by a plan, or record the queries and keys that a plan is fitted on."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ditquant.attention.kinds import kind_of
from ditquant.attention.masks import of_side
from ditquant.attention.plan import AttentionPlan
from ditquant.attention.processors import Core
from ditquant.attention.reordered import attend


class StepClock:
    """Counts denoising steps by the timestep that the model is called with: a smaller one is the next step.

    A larger one starts a new run. With `steps`, those of a run, its steps are counted; else a plan that knows the
    timesteps it was fitted on goes by them, whatever their number.
    """

    def __init__(self, steps: int | None = None):
        self.step, self.steps, self.timestep = 0, steps, None

    def bin_of(self, plan: AttentionPlan) -> int:
        """Return the set of masks for the current step."""
        if self.steps is None and self.timestep is not None and plan.timesteps:
            return plan.bin_near(self.timestep)
        return plan.bin_of(self.step, self.steps)

    def __deepcopy__(self, memo: dict) -> "StepClock":
        return self  # a copy of a model keeps the hook that turns this clock

    def follow(self, model: nn.Module) -> Callable[[], None]:
        """Watch a model; the function that is returned stops that."""
        signature = inspect.signature(model.forward)

        def see(module: nn.Module, args: tuple, kwargs: dict) -> None:
            timestep = signature.bind_partial(*args, **kwargs).arguments.get("timestep")
            if timestep is not None:
                # some models have one a token, 0 where nothing is painted
                self.see(float(timestep.max() if isinstance(timestep, Tensor) else timestep))

        return model.register_forward_pre_hook(see, with_kwargs=True).remove

    def see(self, timestep: float) -> None:
        """Take note of the timestep of a call; the guidance branches of one step have the same."""
        if self.timestep is not None and timestep != self.timestep:
            self.step = self.step + 1 if timestep < self.timestep else 0
        self.timestep = timestep


@dataclass
class PlannedCore:
    """The attention of one block under a plan, at the step of the clock."""

    plan: AttentionPlan
    block: int
    clock: StepClock
    name: str

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend by the mask of the current step."""
        plan = self.plan
        grid = plan.grid.of_length(q.shape[-2], self.name)
        mask = plan.mask(self.clock.bin_of(plan), self.block)
        if mask is not None and grid != plan.grid:
            mask = of_side(mask, grid.tiles)
        bits = {"qk_bits": plan.qk_bits, "pv_bits": plan.pv_bits}
        return attend(q, k, v, grid=grid, order=plan.order(self.block), mask=mask, name=self.name, **bits)


def apply_plan(model: nn.Module, plan: AttentionPlan, clock: StepClock | None = None) -> Callable[[], None]:
    """Let every self-attention of a model follow a plan; the function that is returned undoes it.

    Give a clock for runs of another number of steps than the plan was fitted on: `StepClock(steps=20)`.

    Raises:
        DitQuantError: an unknown class of model, or other blocks or heads than the plan's.
    """
    layers = attention_layers(model)
    heads = model.get_submodule(layers[0]).heads
    plan.check_fits(plan.grid, len(layers), heads)  # the grid is checked at every call, by the number of tokens
    clock = clock or StepClock()
    put_back = replace_cores(model, lambda block, name: PlannedCore(plan, block, clock, name))
    stop = clock.follow(model)

    def undo() -> None:
        put_back()
        stop()

    return undo


def record_attention(model: nn.Module, callback: Callable[[int, Tensor, Tensor], None]) -> Callable[[], None]:
    """Hand block, q and k of every self-attention to `callback`; the function that is returned ends that.

    Queries and keys have their positions encoded, as `fit_attention` takes them. The model's output stays the same.
    """

    def make(block: int, name: str) -> Core:
        def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            callback(block, q.detach(), k.detach())
            return F.scaled_dot_product_attention(q, k, v)

        return core

    return replace_cores(model, make)


def attention_layers(model: nn.Module) -> list[str]:
    """Return the names of the self-attention layers in the order in which they run: the blocks of a plan."""
    pattern = kind_of(model).layers
    names = [name.removesuffix(".processor") for name in model.attn_processors]
    return [name for name in names if re.fullmatch(pattern, name)]


def replace_cores(model: nn.Module, make: Callable[[int, str], Core]) -> Callable[[], None]:
    """Give every self-attention the core that `make(block, name)` returns; the function returned undoes it."""
    kind = kind_of(model).processor
    before = dict(model.attn_processors)
    ours = {f"{name}.processor": kind(make(i, name)) for i, name in enumerate(attention_layers(model))}
    model.set_attn_processor(before | ours)
    return lambda: model.set_attn_processor(dict(before))
