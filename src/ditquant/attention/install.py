"""Let a diffusers model attend by a plan, or record the queries and keys that a plan is fitted on."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ditquant.attention.masks import of_side
from ditquant.attention.plan import AttentionPlan
from ditquant.attention.processors import (
    Core,
    JointImageFirst,
    JointTextFirst,
    SelfAttention,
    TextThenVideo,
    VideoOnly,
    VideoThenText,
)
from ditquant.attention.reordered import attend
from ditquant.registry import unknown

# class of the model -> its self-attention layers over visual tokens, and what to put in their place
LAYERS: dict[str, tuple[str, type[SelfAttention]]] = {
    "CogVideoXTransformer3DModel": (r"transformer_blocks\.\d+\.attn1", TextThenVideo),
    "FluxTransformer2DModel": (r"(single_)?transformer_blocks\.\d+\.attn", JointTextFirst),
    "HunyuanVideoTransformer3DModel": (r"(single_)?transformer_blocks\.\d+\.attn", VideoThenText),
    "PixArtTransformer2DModel": (r"transformer_blocks\.\d+\.attn1", SelfAttention),
    "SD3Transformer2DModel": (r"transformer_blocks\.\d+\.attn", JointImageFirst),
    "WanTransformer3DModel": (r"blocks\.\d+\.attn1", VideoOnly),
}


class StepClock:
    """Counts denoising steps by the timestep that the model is called with: a smaller one is the next step.

    A larger one starts a new run. `steps` of a run are those that the plan was fitted on, unless they are given.
    """

    def __init__(self, steps: int | None = None):
        self.step, self.steps, self._last = 0, steps, None

    def follow(self, model: nn.Module) -> Callable[[], None]:
        """Watch a model; the function that is returned stops that."""
        signature = inspect.signature(model.forward)

        def see(module: nn.Module, args: tuple, kwargs: dict) -> None:
            timestep = signature.bind_partial(*args, **kwargs).arguments.get("timestep")
            if timestep is not None:
                self.see(float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep))

        return model.register_forward_pre_hook(see, with_kwargs=True).remove

    def see(self, timestep: float) -> None:
        """Take note of the timestep of a call; the guidance branches of one step have the same."""
        if self._last is not None and timestep != self._last:
            self.step = self.step + 1 if timestep < self._last else 0
        self._last = timestep


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
        mask = plan.mask(plan.bin_of(self.clock.step, self.clock.steps), self.block)
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
    pattern, _ = _kind(model)
    names = [name.removesuffix(".processor") for name in model.attn_processors]
    return [name for name in names if re.fullmatch(pattern, name)]


def replace_cores(model: nn.Module, make: Callable[[int, str], Core]) -> Callable[[], None]:
    """Give every self-attention the core that `make(block, name)` returns; the function returned undoes it."""
    _, kind = _kind(model)
    before = dict(model.attn_processors)
    ours = {f"{name}.processor": kind(make(i, name)) for i, name in enumerate(attention_layers(model))}
    model.set_attn_processor(before | ours)
    return lambda: model.set_attn_processor(dict(before))


def _kind(model: nn.Module) -> tuple[str, type[SelfAttention]]:
    for cls in type(model).__mro__:
        if cls.__name__ in LAYERS:
            return LAYERS[cls.__name__]
    raise unknown("class of model for an attention plan", type(model).__name__, LAYERS)
