"""The contract of a transform of a linear layer's input and weight: together they change nothing."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ditquant.registry import Registry
from ditquant.specs import TransformSpec
from ditquant.stats import LayerStats


class Transform(nn.Module, ABC):
    """An invertible map of input channels; law: `forward(x) @ absorb(w).T == x @ w.T`.

    Its state is kept in integer Parameters (see `words`), which no cast of the model changes. `kind` is its name in
    TRANSFORMS.
    """

    kind: str

    @classmethod
    @abstractmethod
    def fit(cls, weight: Float[Tensor, "N K"], stats: LayerStats | None, **options: Any) -> "Transform":
        """Choose the transform for a weight and the inputs seen; `stats` None means that no data is at hand."""

    @classmethod
    @abstractmethod
    def empty(cls, in_features: int, **options: Any) -> "Transform":
        """Build it with unset state from `spec().options`, to be filled from a checkpoint."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        """Transform an input, in the dtype of `x`."""

    @abstractmethod
    def absorb(self, weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Apply the inverse transposed to a weight, in the dtype of `weight`."""

    def spec(self) -> TransformSpec:
        """Return what `empty` needs to build it again."""
        return TransformSpec(self.kind, {})

    def check(self, name: str) -> None:
        """Raise DitQuantError if the state loaded for layer `name` is not one that `fit` could have made."""


TRANSFORMS: Registry[type[Transform]] = Registry("transform")
