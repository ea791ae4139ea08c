"""Split a weight into a low-rank part and a quantized rest (SVDQuant, arXiv 2411.05007), refined by turns.

Differs from the paper: the singular vectors are those of the error weighted by E[x^2], and after the first split the
low-rank part is fitted anew to what the quantizer left, as often as that helps; where the quantizer compensates its
errors, once and in the metric in which it does.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.errors import DitQuantError
from ditquant.formats import PackedWeight
from ditquant.stats import LayerStats

TURNS = 6
OVERSAMPLING = 8
POWER_ITERATIONS = 2
DAMPING = 0.01  # of the mean of a metric's diagonal, as in GPTQ


def fit_low_rank(
    weight: Float[Tensor, "N K"],
    rank: int,
    quantize: Callable[[Tensor], PackedWeight],
    stats: LayerStats | None = None,
    turns: int = TURNS,
) -> tuple[PackedWeight, Float[Tensor, "r K"], Float[Tensor, "N r"]]:
    """Return the quantized rest and the factors `down`, `up` in half precision, of the turn with the least error.

    Raises:
        DitQuantError: a rank above the smaller width.
    """
    if rank > min(weight.shape):
        raise DitQuantError(
            f"rank {rank} is not allowed for a weight {tuple(weight.shape)}. Choose at most {min(weight.shape)}."
        )
    size = _channel_size(weight, stats)
    best, least, target = None, torch.inf, weight
    for _ in range(turns):
        down, up = _factors(target * size, rank)
        down, up = (down / size).half(), up.half()
        low = up.float() @ down.float()
        packed = quantize(weight - low)
        rest = weight - packed.dequantize()
        error = float(((rest - low) * size).double().square().sum())
        if not error < least:
            break
        best, least, target = (packed, down, up), error, rest
    if best is None:
        raise DitQuantError("the weight holds values that half precision cannot. Check the checkpoint.")
    return best


def refit_low_rank(
    rest: Float[Tensor, "N K"],
    factors: tuple[Float[Tensor, "r K"], Float[Tensor, "N r"]],
    stats: LayerStats | None,
) -> tuple[Float[Tensor, "r K"], Float[Tensor, "N r"]]:
    """Return factors `down`, `up` of the same rank for what the codes left of a weight.

    With H = R Rᵀ of the inputs' Gram and G = S Sᵀ of the outputs' curvature (the identity where it is not known) an
    error E changes the prediction by |Sᵀ E R|² (see `gptq_joint`): the best factors are those of Sᵀ rest R, mapped
    back. The given ones are returned where there is no Gram, or where these are not better in half precision.
    """
    gram = None if stats is None or not stats.count else stats.gram
    if gram is None:
        return factors
    inputs = _root(gram)
    outputs = torch.eye(len(rest), dtype=torch.float64) if stats.curvature is None else _root(stats.curvature)

    def error(down: Tensor, up: Tensor) -> float:
        return float((outputs.T @ (rest.double() - up.double() @ down.double()) @ inputs).square().sum())

    down, up = _factors(outputs.T @ rest.double() @ inputs, len(factors[0]))
    down = torch.linalg.solve_triangular(inputs, down, upper=False, left=False)
    up = torch.linalg.solve_triangular(outputs.T, up, upper=True)
    balance = (up.abs().amax(0) / down.abs().amax(1).clamp(min=1e-300)).sqrt().clamp(1e-30, 1e30)
    found = (down * balance[:, None]).half(), (up / balance).half()
    return found if error(*found) < error(*factors) else factors


def _root(metric: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """Return the lower triangular root of a metric, with damping."""
    damped = metric.double().clone()
    damped.diagonal().add_(DAMPING * (float(damped.diagonal().mean()) or 1.0))
    return torch.linalg.cholesky(damped)


def _channel_size(weight: Tensor, stats: LayerStats | None) -> Float[Tensor, " K"]:
    """RMS of the input channels relative to their mean, bounded so that the factors stay in half precision."""
    if stats is None:
        return torch.ones(weight.shape[1])
    size = stats.mean_square.sqrt()
    return (size / size.square().mean().sqrt().clamp(min=1e-30)).clamp(1e-2, 1e2)


def _factors(matrix: Float[Tensor, "N K"], rank: int) -> tuple[Float[Tensor, "r K"], Float[Tensor, "N r"]]:
    """Best factors of this rank, of equal size, by a randomized range finder with a fixed seed."""
    width = min(rank + OVERSAMPLING, *matrix.shape)
    probe = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0)).to(matrix)
    basis = torch.linalg.qr(matrix @ probe).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = values[:rank].sqrt()
    return right[:rank] * root[:, None], basis @ left[:, :rank] * root
