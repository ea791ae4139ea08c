"""Statistics of the inputs of linear layers, streamed while the model runs."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ditquant.errors import DitQuantError
from ditquant.stats import LayerStats


@torch.no_grad()
def collect(
    modules: Mapping[str, nn.Module],
    run: Callable[[], object],
    *,
    seed: int = 0,
    grams: Collection[str] = (),
) -> dict[str, LayerStats]:
    """Call `run`, which runs the model, and return what each of the named linear layers received.

    Those named in `grams` get a Gram matrix too.

    Raises:
        DitQuantError: a layer's input held NaN or infinite values. Layers that were never called have no entry.
    """
    stats: dict[str, LayerStats] = {}
    seeds = {name: seed + index for index, name in enumerate(modules)}

    def see(name: str, x: Tensor) -> None:
        if name not in stats:
            stats[name] = LayerStats(x.shape[-1], seed=seeds[name], gram=name in grams)
        stats[name].update(x)
        if not stats[name].finite:  # asked at once: soon after, the values of all layers are lost
            raise not_finite(name)

    with watched(modules, see):
        run()
    return stats


@contextmanager
def watched(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show `see` every input of the named layers."""

    def hook(name: str) -> Callable[[nn.Module, tuple, dict], None]:
        return lambda _module, args, kwargs: see(name, args[0] if args else kwargs["input"])

    handles = [module.register_forward_pre_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_finite(name: str, x: Tensor) -> None:
    """Refuse an input with NaN or infinite values."""
    if not bool(torch.isfinite(x).all()):
        raise not_finite(name)


def not_finite(name: str) -> DitQuantError:
    """Make the error for a layer whose input cannot be used; a component may stand before a colon."""
    return DitQuantError(
        f"the input of {name.rpartition(':')[2]!r} holds NaN or infinite values during calibration. "
        "Run the pipeline in bfloat16 or float32, and check that it makes a picture."
    )
