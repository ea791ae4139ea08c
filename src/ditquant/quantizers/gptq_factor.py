"""The linear algebra of GPTQ: in which order columns are rounded, and what share of an error later ones take back."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ditquant.errors import DitQuantError

ORDERS = {"natural": ("natural",), "activation": ("activation",), "best": ("natural", "activation")}


class Factor:
    """Channels in the order they are rounded, and H = R Rᵀ of the damped Gram in that order, R upper triangular.

    R_kk^2 is what is left of the input of column k when those of all later columns are known: an error e_k of its
    rounding costs e_k^2 R_kk^2 in the output.
    """

    def __init__(self, gram: Float[Tensor, "K K"], channels: Int64[Tensor, " K"], damping: float):
        self.channels = channels
        power = gram.diagonal()[channels].double()
        level = float(power.mean()) or 1.0
        backwards = channels.flip(0)
        damped = gram[backwards][:, backwards].double()
        damped.diagonal().copy_(torch.where(power > 0, power + damping * level, level).flip(0))
        self._lower, failed = torch.linalg.cholesky_ex(damped)  # R, both axes read backwards
        if int(failed):
            raise DitQuantError(f"the Gram is not positive definite with damping {damping}. Choose more, such as 0.01.")

    @property
    def cost(self) -> float:
        """Sum of R_kk^2, to which the error in the output is near proportional."""
        return float(self._lower.diagonal().square().sum())

    def error_weight(self) -> Float[Tensor, " K"]:
        """Return R_kk^2 of every channel in the natural order, relative to the largest."""
        weight = torch.empty(len(self.channels))
        weight[self.channels] = self._lower.diagonal().flip(0).square().float()
        return weight / weight.max()

    def share(self) -> Float[Tensor, "K K"]:
        """Return U_kj / U_kk = R_kk (R⁻¹)_kj, the share of column k's error that each later column j takes back."""
        inverse = torch.linalg.solve_triangular(
            self._lower, torch.eye(len(self._lower), dtype=torch.float64), upper=False
        )
        return inverse.mul_(self._lower.diagonal()[:, None]).float().flip(0, 1)


def choose_factor(gram: Float[Tensor, "K K"], width: int, order: str, damping: float) -> Factor:
    """Return the factor of least cost in the orders that `order` names; the natural one where they are equal."""
    best = None
    for name in ORDERS[order]:
        factor = Factor(gram, column_order(gram.diagonal(), width, name), damping)
        if best is None or factor.cost < best.cost:
            best = factor
    return best


def column_order(power: Float[Tensor, " K"], width: int, order: str) -> Int64[Tensor, " K"]:
    """Return the channels as they are taken; those of a group stay together, so that it is settled once."""
    if order == "natural":
        return torch.arange(len(power))
    grouped = power.view(-1, width)
    within = grouped.argsort(dim=1, descending=True, stable=True) + torch.arange(0, len(power), width)[:, None]
    return within[grouped.sum(1).argsort(dim=0, descending=True, stable=True)].flatten()
