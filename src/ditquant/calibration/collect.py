"""Statistics of the inputs of linear layers, streamed while the model runs."""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import nn

from ditquant.errors import DitQuantError
from ditquant.stats import LayerStats

log = logging.getLogger(__name__)


@torch.no_grad()
def collect(modules: Mapping[str, nn.Module], run: Callable[[], object], *, seed: int = 0) -> dict[str, LayerStats]:
    """Call `run`, which runs the model, and return what each of the named linear layers received.

    Raises:
        DitQuantError: a layer's input held NaN or infinite values. Layers that were never called have no entry.
    """
    stats: dict[str, LayerStats] = {}
    handles = []

    def watch(index: int, name: str):
        def hook(_module: nn.Module, args: tuple) -> None:
            x = args[0]
            if name not in stats:
                stats[name] = LayerStats(x.shape[-1], seed=seed + index)
            stats[name].update(x)
            if not stats[name].finite:  # asked at once: soon after, the values of all layers are lost
                raise DitQuantError(
                    f"the input of {name.partition(':')[2]!r} holds NaN or infinite values during calibration. "
                    "Run the pipeline in bfloat16 or float32, and check that it makes a picture."
                )

        return hook

    try:
        for index, (name, module) in enumerate(modules.items()):
            handles.append(module.register_forward_pre_hook(watch(index, name)))
        run()
    finally:
        for handle in handles:
            handle.remove()
    return stats
