"""A quantizer chooses codes and parameters of a weight; plain functions qualify."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.errors import DitQuantError
from ditquant.formats import PackedWeight
from ditquant.quantizers.options import check_values
from ditquant.registry import Registry, unknown
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats


class WeightQuantizer(Protocol):
    """Quantize a weight; `stats` are those of the layer's input after its transforms, None without data."""

    def __call__(
        self, weight: Float[Tensor, "N K"], spec: WeightSpec, stats: LayerStats | None = None, **options: Any
    ) -> PackedWeight: ...


QUANTIZERS: Registry[WeightQuantizer] = Registry("quantizer")
DATA_FREE: set[str] = set()  # quantizers that statistics would not change, unless they search a clip
NEEDS_GRAM: set[str] = set()  # quantizers whose statistics must hold the Gram


def reads_data(name: str, options: Mapping[str, Any]) -> bool:
    """Say whether statistics change what a quantizer makes with these options."""
    return name not in DATA_FREE or options.get("clip") is not None


def reads_curvature(options: Mapping[str, Any]) -> bool:
    """Say whether a quantizer wants the outputs' curvature with these options."""
    return options.get("joint") is True


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown quantizer, options that are none of its keyword-only parameters, and values not allowed."""
    parameters = inspect.signature(QUANTIZERS[name]).parameters.values()
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of quantizer {name!r}", option, allowed)
    check_values(name, options)


def prepare(weight: Tensor, spec: WeightSpec, format_name: str) -> Tensor:
    """Check a weight and its spec, and return it as float32 [N, K].

    Raises:
        DitQuantError: not a matrix, empty, NaN or infinite values, another format, a group size that does not fit.
    """
    if spec.format != format_name:
        raise DitQuantError(
            f"this quantizer makes format {format_name!r}, the spec asks for {spec.format!r}. Change one of them."
        )
    if weight.ndim != 2 or 0 in weight.shape or not weight.is_floating_point():
        raise DitQuantError(
            "a weight must be a floating-point matrix [out_features, in_features], "
            f"got {weight.dtype} {tuple(weight.shape)}."
        )
    spec.groups(weight.shape[1])
    weight = weight.detach().float().contiguous()
    if not bool(torch.isfinite(weight).all()):
        raise DitQuantError("the weight holds NaN or infinite values. Check the checkpoint.")
    return weight


def input_power(stats: LayerStats | None, in_features: int) -> Float[Tensor, " K"]:
    """Return E[x^2] of every channel, the weight of its error; ones without data."""
    return torch.ones(in_features) if stats is None else stats.mean_square.clamp(min=1e-12)
