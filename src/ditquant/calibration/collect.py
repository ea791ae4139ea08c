"""Statistics of the inputs of linear layers, streamed while the model runs."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ditquant import distributed
from ditquant.calibration.prompts import PromptRun
from ditquant.errors import DitQuantError
from ditquant.stats import LayerStats

_APART = 1_000_003  # seeds of prompts, beyond those of a model's layers


@torch.no_grad()
def collect(
    modules: Mapping[str, nn.Module],
    run: Callable[[], object],
    *,
    seed: int = 0,
    grams: Collection[str] = (),
) -> dict[str, LayerStats]:
    """Call `run`, which runs the model, and return what each of the named linear layers received.

    Those named in `grams` get a Gram matrix too. Prompts are seen one by one, by the ranks in turns, and merged in
    their order: the sums are those of one rank, to the bit.

    Raises:
        DitQuantError: a layer's input held NaN or infinite values. Layers that were never called have no entry.
    """
    if not isinstance(run, PromptRun):
        return _stream(modules, run, seed, grams)
    stats: dict[str, LayerStats] = {}
    for first in range(0, len(run), distributed.count()):
        own = first + distributed.rank()
        seen = {}
        if own < len(run):
            seen = _stream(modules, partial(run, [own]), seed + own * _APART, grams)
        for part in distributed.gather(seen):
            for name, found in part.items():
                if name in stats:
                    stats[name].merge(found)
                else:
                    stats[name] = found
    return {name: stats[name] for name in modules if name in stats}


def _stream(
    modules: Mapping[str, nn.Module], run: Callable[[], object], seed: int, grams: Collection[str]
) -> dict[str, LayerStats]:
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
