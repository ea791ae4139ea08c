"""How the attention of a pipeline looks tile by tile: in the tokens' own order, and in the one chosen for each head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditquant.attention import ORDERS, AttentionSpec
from ditquant.attention.seen import SeenOrders, SeenTiles
from ditquant.calibration import run_prompts
from ditquant.calibration.attention import Watch
from ditquant.errors import DitQuantError
from ditquant.integrations.diffusers import transformers_of

DENSITIES = tuple(i / 10 for i in range(1, 11))


@dataclass(frozen=True)
class HeadMap:
    """The attention in every tile of a head, averaged over all steps and both guidance branches.

    Incoherence is max / mean of the entries of a tile, averaged over the tiles: what one scale a tile has to span.
    """

    layer: str
    head: int
    order: str
    before: Float[Tensor, "T T"]
    after: Float[Tensor, "T T"]
    incoherence_before: float
    incoherence_after: float

    def to_dict(self) -> dict[str, Any]:
        """Return what is written down of it: all but the maps."""
        return {
            "layer": self.layer,
            "head": self.head,
            "order": self.order,
            "mass_before": {str(d): share(self.before, d) for d in DENSITIES},
            "mass": {str(d): share(self.after, d) for d in DENSITIES},
            "incoherence": {"before": self.incoherence_before, "after": self.incoherence_after},
        }


def share(tiles: Float[Tensor, "T T"], density: float) -> float:
    """Return the share of attention in the largest tiles."""
    count = max(1, round(density * tiles.numel()))
    return min(1.0, float(tiles.flatten().double().topk(count).values.sum() / tiles.double().sum()))


@torch.no_grad()
def examine_attention(
    pipeline: Any, prompts: Sequence[str | int], settings: Mapping[str, float | None], density: float = 0.3
) -> list[HeadMap]:
    """Run the prompts twice and return every head's maps; the orders are those that keep most at a density.

    Raises:
        DitQuantError: a class of model that has no processor for attention plans; NaN in q or k.
    """
    models = transformers_of(pipeline)

    def run() -> None:
        run_prompts(pipeline, prompts, settings=settings)

    found = {name: _examine(model, run, density) for name, model in models.items()}
    if len(found) == 1:
        return next(iter(found.values()))
    return [replace(head, layer=f"{name}.{head.layer}") for name, heads in found.items() for head in heads]


def _examine(model: nn.Module, run: Callable[[], None], density: float) -> list[HeadMap]:
    watch, seen = Watch(model), []
    spec = AttentionSpec(density)

    def see(block: int, name: str, q: Tensor, k: Tensor) -> None:
        if not seen:
            seen.append(SeenOrders(watch.grid, spec.criterion, density))
        seen[0].add(block, q, k, name)

    with watch.recording(see):
        run()
    if not seen or watch.grid is None:
        raise DitQuantError(f"the prompts never reached {type(model).__name__}, no attention was seen.")
    scores, candidates = seen[0].scores(), torch.tensor(watch.grid.candidates(), dtype=torch.uint8)
    best = scores.best(spec.criterion)
    chosen = candidates[best]
    both = [SeenTiles(watch.grid, orders) for orders in (torch.zeros_like(chosen), chosen)]

    def add(block: int, name: str, q: Tensor, k: Tensor) -> None:
        for tiles in both:
            tiles.add(0, block, q, k, name)

    with watch.recording(add):
        run()
    before, after = (tiles.sums(1) for tiles in both)
    quant = scores.quant
    return [
        HeadMap(
            *(layer, head, ORDERS[int(chosen[block, head])]),
            *(before[0, block][head], after[0, block][head]),
            *(float(quant[block, head, 0]), float(quant[block, head, best[block, head]])),
        )
        for block, layer in enumerate(watch.layers)
        for head in range(chosen.shape[1])
    ]
