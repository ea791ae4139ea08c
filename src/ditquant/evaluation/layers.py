"""Layer error: what every quantized layer makes of inputs that its full-precision layer received."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditquant.calibration.collect import watched
from ditquant.evaluation.metrics import sqnr_db
from ditquant.integrations.diffusers import transformers_of
from ditquant.nn import QuantLinear
from ditquant.specs import in_words
from ditquant.stats import LayerStats

ROWS = 32  # a layer's input rows that are kept, with their outputs, for every layer of the reference


@dataclass(frozen=True)
class LayerResult:
    """A quantized layer; `sqnr_db` of its output in decibels, None where the reference never called it."""

    name: str
    format: str
    parameters: int
    sqnr_db: float | None


class LayerProbe:
    """A uniform sample of what the reference's linear layers receive, and what they make of it."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    @contextmanager
    @torch.no_grad()
    def watching(self, reference: Any) -> Iterator[None]:
        """Sample inputs while the reference runs; the outputs are computed at the end."""
        modules = named(reference, nn.Linear)
        stats: dict[str, LayerStats] = {}

        def see(name: str, x: Tensor) -> None:
            stats.setdefault(name, LayerStats(x.shape[-1], ROWS)).update(x)

        with watched(modules, see):
            yield
        self._seen = {name: (seen.sample, _apply(modules[name], seen.sample)) for name, seen in stats.items()}

    @torch.no_grad()
    def measure(self, pipeline: Any) -> list[LayerResult]:
        """Return the quantized layers of a pipeline in its order.

        A layer whose activations have one scale a tensor or sample takes it from the sampled rows here.
        """
        found = []
        for name, layer in named(pipeline, QuantLinear).items():
            plan = layer.plan
            words = in_words(plan.weight, plan.activation, plan.transforms, plan.rank)
            weights = layer.in_features * layer.out_features
            found.append(LayerResult(name, words, weights, self._sqnr_db(name, layer)))
        return found

    def _sqnr_db(self, name: str, layer: QuantLinear) -> float | None:
        if name not in self._seen:
            return None
        x, y = self._seen[name]
        return float(sqnr_db(y[None], _apply(layer, x)[None]))


def named(pipeline: Any, kind: type[nn.Module]) -> dict[str, Any]:
    """Return the modules of a kind by name; a component's name stands before it where there are several."""
    parts = transformers_of(pipeline)
    several = len(parts) > 1
    return {
        f"{component}.{name}" if several else name: module
        for component, part in parts.items()
        for name, module in part.named_modules()
        if isinstance(module, kind)
    }


def _apply(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Run a layer on rows as one sample, in the model's dtype and on its device."""
    like = layer.weight
    return layer(rows[None].to(like.device, like.dtype))[0].float().cpu()
