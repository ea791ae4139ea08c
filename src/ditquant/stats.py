"""Streamed statistics of a linear layer's input: what fitting a transform or a quantizer may ask for."""

from copy import copy

import torch
from jaxtyping import Float
from torch import Tensor

SAMPLE_SIZE = 512
GRAM_ROWS = 1024  # rows of small updates are gathered to so many before they enter the Gram


class Gram:
    """Stream the sum of x xᵀ over rows, in float32 on the device that the rows are on.

    Rows are summed in pieces of at least GRAM_ROWS, so that a stream of single rows costs no pass over the matrix each,
    and the sum grows by few additions: its relative error stays near 1e-6.
    """

    def __init__(self, total: Float[Tensor, "K K"]):
        self._sum = total
        self._pending: list[Tensor] = []
        self._waiting = 0  # rows of it

    def add(self, rows: Float[Tensor, "R K"]) -> None:
        """Add float32 rows."""
        self._pending.append(rows)
        self._waiting += len(rows)
        if self._waiting >= GRAM_ROWS:
            self._flush()
        else:
            self._pending[-1] = rows.clone()  # the caller may write over them

    def __reduce__(self):
        return Gram, (self.total().cpu(),)

    def merge(self, other: "Gram") -> None:
        """Add another stream's sum."""
        self._flush()
        self._sum += other.total().to(self._sum.device)

    def total(self) -> Float[Tensor, "K K"]:
        """Return the sum over everything added."""
        self._flush()
        return self._sum

    def mapped(self, forward) -> "Gram":
        """Return the sum of f(x) f(x)ᵀ for a linear map f of rows on the CPU, where transforms are fitted."""
        return Gram(forward(forward(self.total().cpu()).T).contiguous())

    @property
    def finite(self) -> bool:
        """False where the sum has overflowed; no entry is larger than those on the diagonal."""
        return bool(torch.isfinite(self._sum.diagonal()).all())

    def _flush(self) -> None:
        if self._pending:
            device = self._pending[-1].device
            rows = torch.cat([piece.to(device) for piece in self._pending])
            self._pending, self._waiting = [], 0
            self._sum = self._sum.to(device).addmm_(rows.T, rows)


class LayerStats:
    """Absolute maximum, sum of squares and a uniform sample of the input rows of one layer; `gram=True` adds E[x xᵀ].

    An update is a call of the layer, a timestep of its model.

    `curvature` [N, N], where it was measured, is E[g gᵀ] of the gradients of the model's prediction by the output.

    The sample holds the `sample_size` rows with the smallest random keys, so that it is uniform over all rows ever
    seen, and `merge` of two streams is again a uniform sample of their union.
    """

    def __init__(self, in_features: int, sample_size: int = SAMPLE_SIZE, seed: int = 0, gram: bool = False):
        self.count = self.updates = 0
        self.absmax = torch.zeros(in_features)
        self.sum_absmax = torch.zeros(in_features)
        self.sum_squares = torch.zeros(in_features, dtype=torch.float64)
        self.sample = torch.zeros(0, in_features)
        self.sample_size = sample_size
        self._keys = torch.zeros(0)
        self._generator = torch.Generator().manual_seed(seed)
        self._gram = Gram(torch.zeros(in_features, in_features)) if gram else None
        self._before: LayerStats | None = None
        self.curvature: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Float[Tensor, "... K"]) -> None:
        """Add rows; NaN and infinities are counted like any value, see `finite`."""
        x = x.detach().reshape(-1, x.shape[-1])
        self.count += x.shape[0]
        if x.shape[0] == 0:
            return
        wide = x.float()
        absmax = wide.abs().amax(0).cpu()
        self.absmax = torch.maximum(self.absmax, absmax)
        self.updates, self.sum_absmax = self.updates + 1, self.sum_absmax + absmax
        self.sum_squares += wide.square().sum(0, dtype=torch.float64).cpu()
        keys = torch.rand(x.shape[0], generator=self._generator)
        chosen = keys.topk(min(self.sample_size, len(keys)), largest=False).indices
        self._keep(wide[chosen.to(x.device)].cpu(), keys[chosen])
        if self._gram is not None:
            self._gram.add(wide)

    def merge(self, other: "LayerStats") -> None:
        """Add what another stream of the same layer has seen; streams need seeds of their own to be independent.

        The Gram is lost if the other stream has none.
        """
        self.sample_size = min(self.sample_size, other.sample_size)
        self.count += other.count
        self.absmax = torch.maximum(self.absmax, other.absmax)
        self.updates, self.sum_absmax = self.updates + other.updates, self.sum_absmax + other.sum_absmax
        self.sum_squares += other.sum_squares
        self._keep(other.sample, other._keys)
        if self._gram is not None and other._gram is not None:
            self._gram.merge(other._gram)
        else:
            self._gram = None

    def __getstate__(self) -> dict:
        """Leave for another process, where it can be merged but draws nothing."""
        return {**self.__dict__, "_generator": None}

    def _keep(self, rows: Tensor, keys: Tensor) -> None:
        rows, keys = torch.cat([self.sample, rows]), torch.cat([self._keys, keys])
        if len(keys) > self.sample_size:
            chosen = keys.topk(self.sample_size, largest=False).indices
            rows, keys = rows[chosen], keys[chosen]
        self.sample, self._keys = rows, keys

    @property
    def layer_input(self) -> "LayerStats":
        """The statistics before any transform."""
        return self if self._before is None else self._before

    @property
    def finite(self) -> bool:
        """False once a NaN or an infinity was seen."""
        finite = bool(torch.isfinite(self.absmax).all() and torch.isfinite(self.sum_squares).all())
        return finite and (self._gram is None or self._gram.finite)

    @property
    def rms(self) -> float:
        """J of LRQ-DiT: ||X||_F / sqrt(rows * channels) over everything seen."""
        return float((self.sum_squares.sum() / max(self.count * len(self.absmax), 1)).sqrt())

    @property
    def mean_absmax(self) -> Float[Tensor, " K"]:
        """The absolute maximum of every channel in an update, mean over updates: what does not change with time."""
        return self.sum_absmax / max(self.updates, 1)

    @property
    def mean_square(self) -> Float[Tensor, " K"]:
        """E[x_k^2] of every channel."""
        return (self.sum_squares / max(self.count, 1)).float()

    @property
    def gram(self) -> Float[Tensor, "K K"] | None:
        """E[x xᵀ] over everything seen; None if it was not asked for."""
        return None if self._gram is None else (self._gram.total() / max(self.count, 1)).cpu()

    def without_curvature(self) -> "LayerStats":
        """Return the same statistics for some of the layer's outputs, whose curvature is not known."""
        stats = copy(self)
        stats.curvature = None
        return stats

    @torch.no_grad()
    def transformed(self, forward) -> "LayerStats":
        """Return the statistics of `forward(x)`, a linear map; `layer_input` stays the layer's own.

        The Gram, and with it E[x^2], is that of every row ever seen; all else is taken from the sample.
        """
        stats = LayerStats(len(self.absmax), self.sample_size)
        stats.update(forward(self.sample))
        stats._before, stats.curvature = self.layer_input, self.curvature
        if self._gram is not None:
            stats._gram = self._gram.mapped(forward)
            stats.count, stats.sum_squares = self.count, stats._gram.total().diagonal().double().cpu()
        return stats
