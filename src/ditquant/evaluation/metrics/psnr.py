"""Peak signal to noise ratio of 8-bit pictures."""

from jaxtyping import Float, UInt8
from torch import Tensor

from ditquant.evaluation.metrics.base import paired

PEAK = 255.0


@paired("psnr_db", label="PSNR dB", format=".2f")
def psnr_db(reference: UInt8[Tensor, "... H W C"], image: UInt8[Tensor, "... H W C"]) -> Float[Tensor, ""]:
    """Return 10 log10(255² / mean squared error) in decibels, over all frames of a video; infinite if equal."""
    error = (reference.double() - image.double()).square().mean()
    return 10 * (PEAK**2 / error).log10()
