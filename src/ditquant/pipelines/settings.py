"""What a pipeline is called with: only arguments that its `__call__` names."""

import math
from collections.abc import Mapping
from typing import Any

from ditquant.errors import DitQuantError
from ditquant.pipelines.conditions import accepted
from ditquant.registry import unknown

# PixArt's: both change what the prompts and sizes mean, and the second needs packages that nothing else needs
_SWITCHED_OFF = ("use_resolution_binning", "clean_caption")
_NAMES = {
    "steps": ("num_inference_steps",),
    "guidance": ("guidance_scale",),
    "height": ("height",),
    "width": ("width",),
    "frames": ("num_frames", "video_length"),
}


# what a model was trained for, where the pipeline's own defaults are a larger model's: settings by our names, in the
# configuration of the transformer; the underscore keeps diffusers from calling it unknown
TRAINED_FOR = "_trained_for"


def settings_of(pipeline: Any, **wanted: float | None) -> dict[str, Any]:
    """Translate steps, guidance, height, width and frames to the pipeline's names.

    None is left to what the transformer's configuration says under TRAINED_FOR, and then to the pipeline.

    Raises:
        DitQuantError: an unknown setting, a value that is none, or the pipeline has no such argument.
    """
    names = accepted(pipeline)
    arguments = dict.fromkeys((name for name in _SWITCHED_OFF if name in names), False)
    for option, value in (wanted | _trained_for(pipeline, wanted)).items():
        if option not in _NAMES:
            raise unknown("setting", option, _NAMES)
        if value is None:
            continue
        _check(option, value)
        found = [name for name in _NAMES[option] if name in names]
        if not found:
            allowed = ", ".join(o for o, names_ in _NAMES.items() if names.intersection(names_))
            raise DitQuantError(f"{type(pipeline).__name__} takes no {option}. Allowed: {allowed}. Leave {option} out.")
        arguments[found[0]] = value
    return arguments


def _trained_for(pipeline: Any, wanted: dict[str, float | None]) -> dict[str, float]:
    """Return the model's own settings that nothing else was wanted for."""
    config = getattr(getattr(pipeline, "transformer", None), "config", None)
    own = config.get(TRAINED_FOR, {}) if isinstance(config, Mapping) else {}
    return {option: value for option, value in dict(own).items() if wanted.get(option) is None}


def _check(option: str, value: Any) -> None:
    if option == "guidance":
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        allowed = "a finite number"
    else:
        good, allowed = type(value) is int and value >= 1, "a positive integer"
    if not good:
        raise DitQuantError(f"{option} {value!r} is not allowed. Choose {allowed}.")
