"""What stayed in floating point in a quantized model, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ditquant.errors import DitQuantError
from ditquant.integrations.diffusers import transformers_of
from ditquant.models import find_linears
from ditquant.nn import QuantLinear
from ditquant.specs import prompt_hash

BY_RECIPE = "the recipe leaves it in floating point"
NAMES = 3  # examples of a group


@dataclass(frozen=True)
class Kept:
    """Modules of one class that stayed for one reason; `names` are the first of them."""

    kind: str
    reason: str
    modules: int
    parameters: int
    names: tuple[str, ...]


def calibration_of(pipeline: Any) -> set[str]:
    """Return the hashes of the prompts that a pipeline's transformers were fitted to."""
    configs = [getattr(part, "config", {}).get("quantization_config") for part in transformers_of(pipeline).values()]
    plans = [getattr(config, "plan", None) for config in configs]
    return {text for plan in plans if plan is not None for text in plan.calibration}


def seen_in_calibration(pipeline: Any, prompts: Sequence[str | int]) -> list[str]:
    """Return the prompts that a pipeline was calibrated with: figures on them flatter it."""
    seen = calibration_of(pipeline)
    return [prompt for prompt in prompts if isinstance(prompt, str) and prompt_hash(prompt) in seen]


def kept(pipeline: Any) -> list[Kept]:
    """Group what has weights and is not quantized, by class and reason; nothing for a full-precision model."""
    found: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for part in transformers_of(pipeline).values():
        quantized = {name for name, module in part.named_modules() if isinstance(module, QuantLinear)}
        if not quantized:
            continue
        try:
            coverage = find_linears(part)
        except DitQuantError as error:
            found.setdefault((type(part).__name__, str(error)), []).append(("", 0))
            continue
        for layer in coverage.layers:
            found.setdefault(("Linear", BY_RECIPE), []).append((layer.name, layer.parameters))
        for module in coverage.skipped:
            if module.name not in quantized:
                found.setdefault((module.kind, module.reason), []).append((module.name, module.parameters))
    return [
        Kept(kind, reason, len(members), sum(size for _, size in members), tuple(n for n, _ in members[:NAMES] if n))
        for (kind, reason), members in found.items()
    ]
