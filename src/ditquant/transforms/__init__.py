"""Exact changes of a layer's input channels that make weight and input easier to quantize."""

from ditquant.transforms.adaptive import RotationReport, describe, fit_adaptive
from ditquant.transforms.base import TRANSFORMS, Transform
from ditquant.transforms.dual_rotation import DualRotation
from ditquant.transforms.fast_dual_rotation import FastDualRotation
from ditquant.transforms.fitters import (
    FITTERS,
    check_fit_options,
    needs_data,
    register_fitter,
    register_transform,
    takes_seed,
)
from ditquant.transforms.hadamard import Hadamard
from ditquant.transforms.permute import Permute
from ditquant.transforms.smooth import Smooth

__all__ = [
    "FITTERS",
    "TRANSFORMS",
    "DualRotation",
    "FastDualRotation",
    "Hadamard",
    "Permute",
    "RotationReport",
    "Smooth",
    "Transform",
    "check_fit_options",
    "describe",
    "fit_adaptive",
    "needs_data",
    "register_fitter",
    "register_transform",
    "takes_seed",
]
