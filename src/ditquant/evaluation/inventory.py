"""What stayed in floating point in a quantized model, and why."""

from dataclasses import dataclass
from typing import Any

from ditquant.errors import DitQuantError
from ditquant.integrations.diffusers import transformers_of
from ditquant.models import find_linears
from ditquant.nn import QuantLinear

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
