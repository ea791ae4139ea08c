"""Step SQNR: the error of the predicted velocity or noise at the states of the full-precision trajectory.

A finished picture depends on the whole trajectory and scatters widely; what a model predicts at equal states does not,
so this is the figure that ranks methods.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ditquant.errors import DitQuantError
from ditquant.integrations.diffusers import transformers_of


@dataclass
class Call:
    """One call of a transformer: its arguments, and what full precision answered."""

    component: str
    args: tuple
    kwargs: dict[str, Any]
    prediction: Float[Tensor, "B ..."]


@dataclass
class Trajectory:
    """The calls of one run of the reference with `prompts` samples in a batch."""

    prompts: int
    calls: list[Call] = field(default_factory=list)


def record(pipeline: Any, prompts: int, run: Callable[[], object]) -> Trajectory:
    """Call `run`, which paints `prompts` samples in one batch, and keep the transformers' calls on the CPU."""
    trajectory = Trajectory(prompts)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        """Share what does not change from call to call, such as the text."""
        tensor = tensor.detach().cpu()
        for other in kept:
            if other.shape == tensor.shape and other.dtype == tensor.dtype and torch.equal(other, tensor):
                return other
        kept.append(tensor.clone())
        del kept[:-16]
        return kept[-1]

    def watch(component: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            args, kwargs = tree_map_only(Tensor, keep, (args, kwargs))
            answer = prediction(output, args, kwargs).detach().float().cpu()
            trajectory.calls.append(Call(component, args, kwargs, answer))

        return hook

    parts = transformers_of(pipeline)
    handles = [part.register_forward_hook(watch(name), with_kwargs=True) for name, part in parts.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return trajectory


def prediction(output: Any, args: tuple, kwargs: dict[str, Any]) -> Float[Tensor, "B ..."]:
    """Return the tensor that a transformer predicts; without the variances that some learn beside the noise."""
    sample = output[0] if isinstance(output, tuple) else output.sample
    state = kwargs.get("hidden_states", args[0] if args else None)
    if isinstance(state, Tensor) and state.ndim == sample.ndim and sample.shape[1] == 2 * state.shape[1]:
        return sample[:, : state.shape[1]]
    return sample


@torch.no_grad()
def step_sqnr_db(pipeline: Any, trajectory: Trajectory) -> tuple[list[float], list[float]]:
    """Return the SQNR of each prompt over all steps, and that of each call over all prompts, in decibels.

    Rows of a batch beyond the prompts are the other guidance branch of the same prompts.

    Raises:
        DitQuantError: another model, or predictions that are NaN or infinite.
    """
    parts = transformers_of(pipeline)
    if missing := {call.component for call in trajectory.calls} - set(parts):
        raise DitQuantError(f"the model has no {sorted(missing)[0]!r} to compare. Give a model of the same class.")
    signal, noise = (torch.zeros(len(trajectory.calls), trajectory.prompts, dtype=torch.float64) for _ in range(2))
    for i, call in enumerate(trajectory.calls):
        answer = _replay(parts[call.component], call)
        if not bool(torch.isfinite(answer).all()):
            raise DitQuantError(
                f"the prediction of {call.component or 'the model'!r} at call {i} is NaN or infinite. "
                "Load it in bfloat16 or float32, or quantize it with more bits."
            )
        rows = torch.arange(len(answer)) % trajectory.prompts
        truth = call.prediction.double().flatten(1)
        signal[i].index_add_(0, rows, truth.square().sum(1))
        noise[i].index_add_(0, rows, (truth - answer.double().flatten(1)).square().sum(1))
    return _db(signal.sum(0), noise.sum(0)), _db(signal.sum(1), noise.sum(1))


def _replay(part: nn.Module, call: Call) -> Tensor:
    device, dtype = next((p.device, p.dtype) for p in part.parameters() if p.is_floating_point())

    def place(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() and tensor.dtype != torch.float64 else None)

    args, kwargs = tree_map_only(Tensor, place, (call.args, call.kwargs))
    return prediction(part(*args, **kwargs), args, kwargs).float().cpu()


def _db(signal: Tensor, noise: Tensor) -> list[float]:
    return torch.where(noise == 0, torch.inf, 10 * (signal / noise).log10()).tolist()
