"""How steady a video is: temporal flicker, and the warp error along the reference's motion."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditquant.evaluation.metrics.base import paired
from ditquant.evaluation.metrics.flow import optical_flow, visible, warp

LUMA = (0.299, 0.587, 0.114)


@paired("flicker", label="flicker", format=".2f", better="lower", videos=True)
def flicker(reference: UInt8[Tensor, "F H W C"], video: UInt8[Tensor, "F H W C"]) -> Float[Tensor, ""]:
    """Return the mean absolute difference of consecutive frames in 8-bit levels (VBench, temporal flickering).

    Motion counts too, so that it is read beside the reference's own.
    """
    frames = video.double()
    return (frames[1:] - frames[:-1]).abs().mean()


@paired("warp_error", label="warp error", format=".5f", better="lower", videos=True)
def warp_error(reference: UInt8[Tensor, "F H W C"], video: UInt8[Tensor, "F H W C"]) -> Float[Tensor, ""]:
    """Return the mean squared difference, on a scale of 0 to 1, of each frame and the next one warped back onto it.

    The motion is that of the reference's video; pixels that it hides are left out (Lai et al. 2018, equation 10). A
    steady video that moves as the reference does has a small error.
    """
    grey = (reference.double() / 255 * torch.tensor(LUMA, dtype=torch.float64)).sum(-1)
    frames = video.double().movedim(-1, 1) / 255
    total, count = torch.zeros(2, dtype=torch.float64)
    for one, two, now, then in zip(grey[:-1], grey[1:], frames[:-1], frames[1:], strict=True):
        forward, backward = optical_flow(one[None], two[None]), optical_flow(two[None], one[None])
        seen = visible(forward, backward)[0]
        error = (now - warp(then[None], forward)[0]).square().mean(0)
        total, count = total + error[seen].sum(), count + seen.sum()
    return total / count
