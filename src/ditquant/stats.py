"""Streamed statistics of a linear layer's input: what fitting a transform or a quantizer may ask for."""

import torch
from jaxtyping import Float
from torch import Tensor

SAMPLE_SIZE = 512


class LayerStats:
    """Absolute maximum, sum of squares and a uniform sample of the input rows of one layer.

    The sample holds the `sample_size` rows with the smallest random keys, so that it is uniform over all rows ever
    seen, and `merge` of two streams is again a uniform sample of their union.
    """

    def __init__(self, in_features: int, sample_size: int = SAMPLE_SIZE, seed: int = 0):
        self.count = 0
        self.absmax = torch.zeros(in_features)
        self.sum_squares = torch.zeros(in_features, dtype=torch.float64)
        self.sample = torch.zeros(0, in_features)
        self.sample_size = sample_size
        self._keys = torch.zeros(0)
        self._generator = torch.Generator().manual_seed(seed)
        self.layer_input = self  # the statistics before any transform

    @torch.no_grad()
    def update(self, x: Float[Tensor, "... K"]) -> None:
        """Add rows; NaN and infinities are counted like any value, see `finite`."""
        x = x.detach().reshape(-1, x.shape[-1])
        self.count += x.shape[0]
        if x.shape[0] == 0:
            return
        wide = x.float()
        self.absmax = torch.maximum(self.absmax, wide.abs().amax(0).cpu())
        self.sum_squares += wide.square().sum(0, dtype=torch.float64).cpu()
        keys = torch.rand(x.shape[0], generator=self._generator)
        chosen = keys.topk(min(self.sample_size, len(keys)), largest=False).indices
        self._keep(wide[chosen.to(x.device)].cpu(), keys[chosen])

    def merge(self, other: "LayerStats") -> None:
        """Add what another stream of the same layer has seen; streams need seeds of their own to be independent."""
        self.sample_size = min(self.sample_size, other.sample_size)
        self.count += other.count
        self.absmax = torch.maximum(self.absmax, other.absmax)
        self.sum_squares += other.sum_squares
        self._keep(other.sample, other._keys)

    def _keep(self, rows: Tensor, keys: Tensor) -> None:
        rows, keys = torch.cat([self.sample, rows]), torch.cat([self._keys, keys])
        if len(keys) > self.sample_size:
            chosen = keys.topk(self.sample_size, largest=False).indices
            rows, keys = rows[chosen], keys[chosen]
        self.sample, self._keys = rows, keys

    @property
    def finite(self) -> bool:
        """False once a NaN or an infinity was seen."""
        return bool(torch.isfinite(self.absmax).all() and torch.isfinite(self.sum_squares).all())

    @property
    def rms(self) -> float:
        """J of LRQ-DiT: ||X||_F / sqrt(rows * channels) over everything seen."""
        return float((self.sum_squares.sum() / max(self.count * len(self.absmax), 1)).sqrt())

    @property
    def mean_square(self) -> Float[Tensor, " K"]:
        """E[x_k^2] of every channel."""
        return (self.sum_squares / max(self.count, 1)).float()

    def transformed(self, forward) -> "LayerStats":
        """Return the statistics of `forward(x)`, taken from the sample; `layer_input` stays the layer's own."""
        stats = LayerStats(len(self.absmax), self.sample_size)
        stats.update(forward(self.sample))
        stats.layer_input = self.layer_input
        return stats
