"""What a recipe names: functions that fit a transform; every transform's own `fit` is one of them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.errors import DitQuantError
from ditquant.registry import Registry, unknown
from ditquant.stats import LayerStats
from ditquant.transforms.base import TRANSFORMS, Transform
from ditquant.transforms.block_rotation import choose_block
from ditquant.transforms.options import check_values, option_names

Fitter = Callable[..., Transform]
FITTERS: Registry[Fitter] = Registry("transform")
"""name -> fitter(weight, stats, **options); options are checked, the result is ready to `absorb` the weight."""

_FITS: Registry[Fitter] = Registry("transform")


def register_transform(kind: str) -> Callable[[type[Transform]], type[Transform]]:
    """Enter a transform in TRANSFORMS and its `fit` in FITTERS."""

    def add(cls: type[Transform]) -> type[Transform]:
        cls.kind = kind
        TRANSFORMS[kind] = cls
        register_fitter(kind)(cls.fit)
        return cls

    return add


def register_fitter(name: str) -> Callable[[Fitter], Fitter]:
    """Enter a function whose keyword-only parameters are its options."""

    def add(fit: Fitter) -> Fitter:
        def checked(weight: Float[Tensor, "N K"], stats: LayerStats | None = None, /, **options: Any) -> Transform:
            check_fit_options(name, options)
            return fit(weight, stats, **options)

        _FITS[name] = fit
        FITTERS[name] = checked
        return fit

    return add


def check_fit_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse what a fitter would refuse, before anything is calibrated: an unknown name, option or value."""
    allowed = option_names(_FITS[name])
    for option in options:
        if option not in allowed:
            raise unknown(f"option of transform {name!r}", option, allowed)
    check_values(name, **options)


def check_width(name: str, in_features: int, options: Mapping[str, Any]) -> None:
    """Refuse a width that a fitter cannot rotate in blocks, before anything is calibrated."""
    block = inspect.signature(_FITS[name]).parameters.get("block")
    if block is not None:
        choose_block(in_features, options.get("block", block.default))


def needs_data(name: str) -> bool:
    """Say whether a fitter cannot work without statistics."""
    return inspect.signature(_FITS[name]).parameters["stats"].default is inspect.Parameter.empty


def takes_seed(name: str) -> bool:
    """Say whether a fitter draws random numbers."""
    return "seed" in option_names(_FITS[name])


def need_stats(kind: str, weight: Float[Tensor, "N K"], stats: LayerStats | None) -> LayerStats:
    """Return the statistics; raises DitQuantError where there are none or they cannot be used."""
    if stats is None or stats.count == 0:
        raise DitQuantError(f"transform {kind!r} needs calibration data and got none. Give prompts, or use 'hadamard'.")
    if len(stats.absmax) != weight.shape[1]:
        raise DitQuantError(
            f"transform {kind!r} got statistics of {len(stats.absmax)} channels for a weight of {weight.shape[1]}. "
            "Give the statistics of this layer's input."
        )
    if not stats.finite:
        raise DitQuantError(f"transform {kind!r} got NaN or infinite inputs. Calibrate in bfloat16 or float32.")
    return stats


def sample_rows(stats: LayerStats, rows: int, device: torch.device) -> Float[Tensor, "S K"]:
    """Return at most `rows` rows of the sample, spread evenly over it."""
    chosen = torch.linspace(0, len(stats.sample) - 1, min(rows, len(stats.sample))).round().long()
    return stats.sample[chosen].to(device)
