"""What a pipeline is asked to paint: texts, or the classes of a class-conditional model."""

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ditquant.errors import DitQuantError


def accepted(pipeline: Any) -> set[str]:
    """Return the names of the arguments of a pipeline's call."""
    return set(inspect.signature(pipeline.__call__).parameters)


def conditions(pipeline: Any, prompts: Sequence[str | int]) -> tuple[str, list[str] | list[int]]:
    """Return the name of the argument that takes the prompts, and the prompts as it wants them.

    Raises:
        DitQuantError: no prompts, a prompt that is no text, or a class that the model does not know.
    """
    if isinstance(prompts, str | Mapping) or len(prompts) == 0:
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
    named = set(words.values())
    # a table of classes may have more rows than there are classes, if all of them have names
    complete = named == set(range(len(named))) and named
    count = len(named) if complete else pipeline.transformer.config.num_embeds_ada_norm
    try:
        label = int(prompt)
    except ValueError:
        close = get_close_matches(str(prompt), list(words), n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        names = f", or one of the model's {len(words)} class names" if words else ""
        raise DitQuantError(
            f"unknown class {prompt!r}. {hint}Allowed: an integer from 0 to {count - 1}{names}."
        ) from None
    if not 0 <= label < count:
        raise DitQuantError(f"class label {label} is not allowed. Choose an integer from 0 to {count - 1}.")
    return label
