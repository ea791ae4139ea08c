"""Read a layer's transforms as one `Rotation`, which kernels apply in the pass that quantizes the input."""

from collections.abc import Iterable

import torch
from torch import nn

from ditquant.kernels import Rotation, rotates
from ditquant.transforms.fast_dual_rotation import FastDualRotation
from ditquant.transforms.hadamard import Hadamard
from ditquant.transforms.smooth import Smooth


def fuse(transforms: Iterable[nn.Module], device: torch.device) -> Rotation | None:
    """Return the rotation that equals the transforms in order; None if they are not of that form.

    None also where their state is not on the device of the input: offloaded transforms fetch it when they are called.
    """
    left = list(transforms)
    if any(words.device != device for transform in left for words in transform.parameters()):
        return None
    factor = left.pop(0).factor if left and type(left[0]) is Smooth else None
    if not left:
        return Rotation(factor)
    last = left[0]
    if len(left) > 1 or type(last) not in (Hadamard, FastDualRotation) or not rotates(last.block, device):
        return None
    if type(last) is Hadamard:
        return Rotation(factor, last.block, last.signs)
    return Rotation(factor, last.block, last.signs1, last.permutation, last.signs2)
