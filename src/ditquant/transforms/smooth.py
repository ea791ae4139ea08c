"""Smoothing: move part of the spread of input channels into the weight (ViDiT-Q, SmoothQuant).

m_k = wmax_k^alpha / amax_k^(1-alpha); alpha is the exponent of the weight, SmoothQuant's is 1 - alpha. amax is that of
all inputs, or the mean over timesteps of each one's: ViDiT-Q leaves to the scales the imbalance of channels that is the
same at all timesteps, and to a rotation behind them the one that comes and goes.

Two kinds of channels have no balance of their own. One that was always zero says nothing about its range, which is
taken to be the median of the others'. A column of zeros is exact whatever its input, which must not raise the others'
scales: it is damped at least as far as any other channel, and below the range of every other.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.errors import damaged
from ditquant.stats import LayerStats
from ditquant.transforms.base import Transform
from ditquant.transforms.block_rotation import work_dtype
from ditquant.transforms.fitters import need_stats, register_transform
from ditquant.transforms.options import check_values, stored_none
from ditquant.transforms.state import check_state, hold
from ditquant.words import from_words

# Every bfloat16 number in this range is a float16 number too.
LOW, HIGH = 2.0**-14, 2.0**14


@register_transform("smooth")
class Smooth(Transform):
    """Scale input channel k by m_k and divide the weight's column by it; m is stored as it is used, in bfloat16."""

    def __init__(self, factor: Float[Tensor, " K"]):
        super().__init__()
        hold(self, factor=factor.to(torch.bfloat16))

    @classmethod
    def fit(
        cls, weight: Float[Tensor, "N K"], stats: LayerStats | None, *, alpha: float = 0.5, over: str = "all"
    ) -> "Smooth":
        """Balance the channels; without any input or any weight all factors are 1.

        `over` "all" takes the maximum over all inputs, "timesteps" the mean of the maxima of all calls.
        """
        check_values("smooth", alpha=alpha, over=over)
        stats = need_stats("smooth", weight, stats)
        amax = (stats.absmax if over == "all" else stats.mean_absmax).to(weight.device)
        wmax = weight.abs().amax(0).float()
        return cls(balance(wmax, amax, alpha))

    @classmethod
    def empty(cls, in_features: int, /, **options) -> "Smooth":
        """Build it with factors to be loaded; there are no options."""
        stored_none("smooth", options)
        return cls(torch.zeros(in_features))

    @property
    def m(self) -> Float[Tensor, " K"]:
        """The factors."""
        return from_words(self.factor, torch.bfloat16)

    def forward(self, x: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        """Return x * m."""
        return x * self.m.to(x.dtype)

    def absorb(self, weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return weight / m."""
        dtype = work_dtype(weight.dtype)
        return (weight.to(dtype) / self.m.to(dtype)).to(weight.dtype)

    def check(self, name: str) -> None:
        """Factors are in the range that `fit` keeps to."""
        check_state(self, name)
        if not bool(((self.m >= LOW) & (self.m <= HIGH)).all()):
            raise damaged(f"{name}: factors of transform 'smooth' are outside {LOW:g} to {HIGH:g}")


def balance(wmax: Float[Tensor, " K"], amax: Float[Tensor, " K"], alpha: float) -> Float[Tensor, " K"]:
    """Return wmax^alpha / amax^(1-alpha) within the range of factors, and what stands in for it where one is zero.

    Scaling inputs by c and weights by 1/c scales every factor by 1/c.
    """
    weighted, seen = wmax > 0, amax > 0
    if not bool(weighted.any() and seen.any()):
        return torch.ones_like(wmax)
    amax = torch.where(seen, amax, amax[seen].median())
    factor = (wmax**alpha / amax ** (1 - alpha)).clamp(LOW, HIGH)
    quiet = (factor * amax)[weighted].min() / amax
    return torch.where(weighted, factor, quiet.minimum(factor[weighted].min()).clamp(LOW, HIGH))
