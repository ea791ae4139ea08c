"""What a pipeline is called with: only arguments that its `__call__` names."""

import inspect
from collections.abc import Sequence
from typing import Any

from ditquant.errors import DitQuantError
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


def accepted(pipeline: Any) -> set[str]:
    """Return the names of the arguments of a pipeline's call."""
    return set(inspect.signature(pipeline.__call__).parameters)


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


def conditions(pipeline: Any, prompts: Sequence[str | int]) -> tuple[str, list[str] | list[int]]:
    """Return the name of the argument that takes the prompts, and the prompts as it wants them.

    Raises:
        DitQuantError: no prompts, a prompt that is no text, or a class that the model does not know.
    """
    if isinstance(prompts, str) or len(prompts) == 0:
        raise DitQuantError(f"prompts must be a list with at least one prompt, got {prompts!r}.")
    if "class_labels" in accepted(pipeline):
        return "class_labels", [_class_label(pipeline, prompt) for prompt in prompts]
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise DitQuantError(f"{type(pipeline).__name__} needs prompts of text, got {prompt!r}.")
    return "prompt", list(prompts)


def _class_label(pipeline: Any, prompt: str | int) -> int:
    words = getattr(pipeline, "labels", None) or {}
    if prompt in words:
        return words[prompt]
    count = pipeline.transformer.config.num_embeds_ada_norm
    try:
        label = int(prompt)
    except ValueError:
        raise unknown("class label", prompt, [*words, f"0 to {count - 1}"]) from None
    if not 0 <= label < count:
        raise DitQuantError(f"class label {label} is not allowed. Choose an integer from 0 to {count - 1}.")
    return label
