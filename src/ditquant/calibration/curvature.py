"""How much the model's prediction feels an error in a layer's output: E[g gᵀ] of the gradients by that output.

g = Jᵀ v with J the derivative of the prediction and v random signs, so that E[g gᵀ] = E[Jᵀ J], the Gauss-Newton
curvature of the prediction's squared error (Hutchinson's estimate). Few signs make an estimate that is noise in most
directions, so it is shrunk towards a multiple of the identity as far as its parts, one a call and signs, disagree
(Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices"). The model runs in full
precision on some recorded calls; only one block's matrices and one call's graph are held.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import BoundArguments, signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ditquant.calibration.record import Recording
from ditquant.calibration.store import Ref

PROBES = 4  # random signs a call: a graph costs as much as two gradients


def curvatures(
    recording: Recording, linears: Mapping[str, nn.Linear], seed: int = 0
) -> dict[str, Float[Tensor, "N N"]]:
    """Return the curvature of every named layer, on the CPU; layers that the prediction does not feel have none."""
    model, found = recording.whole.blocks[0][1], {name: _Mean(linear.out_features) for name, linear in linears.items()}
    generator = torch.Generator().manual_seed(seed)
    with _outputs(model, linears) as outputs, torch.enable_grad():
        for arguments in recording.whole.calls.values():
            prediction = _call(model, arguments, recording)
            values = [value for _, value in outputs]
            for probe in range(PROBES):
                signs = torch.randint(0, 2, prediction.shape, generator=generator) * 2 - 1
                last = probe == PROBES - 1
                gradients = torch.autograd.grad(
                    prediction, values, signs.to(prediction), retain_graph=not last, allow_unused=True
                )
                for (name, _), gradient in zip(outputs, gradients, strict=True):
                    if gradient is not None:
                        found[name].add(gradient.flatten(0, -2).float())
            outputs.clear()
    totals = {name: mean.shrunk() * len(recording.whole.calls) for name, mean in found.items() if mean.count}
    return {name: total.cpu() for name, total in totals.items() if total.any() and total.isfinite().all()}


class _Mean:
    """The mean of A = Σ g gᵀ over calls and signs, and how far the single ones are from it."""

    def __init__(self, size: int):
        self.count, self.square = 0, 0.0
        self.total: Tensor = torch.zeros(size, size)

    def add(self, rows: Float[Tensor, "R N"]) -> None:
        part = rows.T @ rows
        self.count += 1
        self.square += _square(part)
        self.total = self.total.to(part) + part

    def shrunk(self) -> Float[Tensor, "N N"]:
        """Return the mean moved towards the identity of the same trace by its variance over its distance from it."""
        mean = self.total / self.count
        level, square = float(mean.diagonal().mean(dtype=torch.float64)), _square(mean)
        away = square - len(mean) * level**2
        variance = (self.square / self.count - square) / max(self.count - 1, 1)
        share = min(max(variance / away, 0.0), 1.0) if away > 0 else 0.0
        mean.mul_(1 - share).diagonal().add_(share * level)
        return mean


def _square(matrix: Tensor) -> float:
    """Return the squared Frobenius norm, summed in double precision without a copy."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


@contextmanager
def _outputs(model: nn.Module, linears: Mapping[str, nn.Linear]) -> Iterator[list[tuple[str, Tensor]]]:
    """Collect the named layers' outputs, from which on a graph is built; parameters have no part in it."""
    outputs: list[tuple[str, Tensor]] = []

    def hook(name: str):
        def keep(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            outputs.append((name, output))
            return output

        return keep

    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [linear.register_forward_hook(hook(name)) for name, linear in linears.items()]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield outputs
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _call(model: nn.Module, arguments: dict[str, Any], recording: Recording) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    loaded = tree_map(lambda v: recording.store.get(v).to(device) if isinstance(v, Ref) else v, arguments)
    bound = BoundArguments(signature(model.forward), loaded)
    returned = model(*bound.args, **bound.kwargs)
    return next(leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor))
