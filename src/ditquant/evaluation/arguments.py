"""What a pipeline is called with: only arguments that its `__call__` names."""

from typing import Any

from ditquant.calibration.conditions import accepted
from ditquant.errors import DitQuantError

# PixArt's: both change what the prompts and sizes mean, and the second needs packages that nothing else needs
_SWITCHED_OFF = ("use_resolution_binning", "clean_caption")
_NAMES = {
    "steps": ("num_inference_steps",),
    "guidance": ("guidance_scale",),
    "height": ("height",),
    "width": ("width",),
    "frames": ("num_frames", "video_length"),
}


def options(pipeline: Any, **wanted: float | None) -> dict[str, Any]:
    """Translate steps, guidance, height, width and frames to the pipeline's names; None is left to the pipeline.

    Raises:
        DitQuantError: the pipeline has no such argument.
    """
    names = accepted(pipeline)
    arguments = dict.fromkeys((name for name in _SWITCHED_OFF if name in names), False)
    for option, value in wanted.items():
        if value is None:
            continue
        found = [name for name in _NAMES[option] if name in names]
        if not found:
            allowed = ", ".join(o for o, names_ in _NAMES.items() if names.intersection(names_))
            raise DitQuantError(f"{type(pipeline).__name__} takes no {option}. Allowed: {allowed}. Leave {option} out.")
        arguments[found[0]] = value
    return arguments
