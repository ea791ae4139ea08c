"""A paired metric compares each picture with the reference's picture of the same prompt and seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ditquant.errors import DitQuantError
from ditquant.registry import Registry


@dataclass(frozen=True)
class PairedMetric:
    """`compute` maps two pictures, uint8 [..., H, W, C], to a number; `label` and `format` are for tables.

    `better` is "higher" or "lower". A metric with `videos` is for two frames or more, and its value for the reference
    beside itself means something.
    """

    label: str
    format: str
    compute: Callable[[Tensor, Tensor], Tensor]
    better: str = "higher"
    videos: bool = False

    def takes(self, images: Sequence[np.ndarray]) -> bool:
        """Say whether it can be measured on such pictures."""
        return not self.videos or all(image.ndim == 4 and len(image) > 1 for image in images)

    def __call__(self, reference: Sequence[np.ndarray], images: Sequence[np.ndarray]) -> Tensor:
        """Return one value a picture, float64 [B].

        Raises:
            DitQuantError: pictures that cannot be paired.
        """
        if len(reference) != len(images):
            raise DitQuantError(f"{len(images)} pictures cannot be paired with {len(reference)} of the reference.")
        return torch.stack([self._one(r, i) for r, i in zip(reference, images, strict=True)])

    def _one(self, reference: np.ndarray, image: np.ndarray) -> Tensor:
        if reference.shape != image.shape:
            raise DitQuantError(
                f"a picture of shape {image.shape} cannot be compared with the reference's {reference.shape}. "
                "Generate both at the same height, width and frames."
            )
        return self.compute(torch.as_tensor(reference), torch.as_tensor(image))


METRICS: Registry[PairedMetric] = Registry("metric")
"""Paired metrics by name; the order is that of the columns of a table."""


def paired(
    name: str, label: str, format: str, better: str = "higher", videos: bool = False
) -> Callable[[Callable], Callable]:
    """Register a function of two pictures as a paired metric, and return it unchanged."""

    def add(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        METRICS[name] = PairedMetric(label, format, compute, better, videos)
        return compute

    return add
