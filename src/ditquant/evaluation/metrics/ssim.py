"""Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004, equation 13) of 8-bit pictures."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from ditquant.errors import DitQuantError
from ditquant.evaluation.metrics.base import paired

WINDOW, SIGMA, PEAK = 11, 1.5, 255.0
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


@paired("ssim", label="SSIM", format=".4f")
def ssim(reference: UInt8[Tensor, "... H W C"], image: UInt8[Tensor, "... H W C"]) -> Float[Tensor, ""]:
    """Return the mean over all whole windows, channels and frames; 1 if equal.

    Raises:
        DitQuantError: a side under 11 pixels.
    """
    height, width = reference.shape[-3:-1]
    if min(height, width) < WINDOW:
        raise DitQuantError(f"SSIM needs pictures of at least {WINDOW} x {WINDOW} pixels, got {height} x {width}.")
    x, y = _planes(reference), _planes(image)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (var_x + var_y + C2)
    return (luminance * structure).mean()


def _planes(picture: Tensor) -> Float[Tensor, "P 1 H W"]:
    planes = picture.double().movedim(-1, -3)
    return planes.reshape(-1, 1, *planes.shape[-2:])


def _blur(planes: Float[Tensor, "P 1 H W"]) -> Float[Tensor, "P 1 h w"]:
    distance = torch.arange(WINDOW, dtype=torch.float64, device=planes.device) - WINDOW // 2
    weight = torch.exp(-(distance**2) / (2 * SIGMA**2))
    weight = weight / weight.sum()
    return F.conv2d(F.conv2d(planes, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))
