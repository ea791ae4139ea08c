"""Plots of what quantization does to weights and activations, as PNG; matplotlib is needed only when one is drawn."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ditquant.errors import DitQuantError
from ditquant.evaluation.pictures import data_uri

WEIGHT, LEVEL, BEFORE, AFTER = "#8fa8c8", "#c2410c", "#c2410c", "#2563a8"


@dataclass(frozen=True)
class Plot:
    """A picture under a title, or the reason why there is none."""

    title: str
    png: bytes | None = None
    note: str = ""

    def page_data(self) -> dict[str, Any]:
        """Return the picture or the reason."""
        return {"kind": "plot", "title": self.title, "src": self.png and data_uri(self.png), "note": self.note}


class MissingMatplotlib(DitQuantError):
    """matplotlib is not installed."""


def drawn(draw: Callable[..., bytes], *data: Any, title: str) -> Plot:
    """Draw a plot, or say in its place that matplotlib is missing."""
    try:
        return Plot(title, draw(*data, title))
    except MissingMatplotlib as error:
        return Plot(title, note=str(error))


def plot_codebook(panels: Mapping[str, tuple[Float[Tensor, " K"], Float[Tensor, " V"]]], title: str) -> bytes:
    """Draw for every label the histogram of a row of weights, and the levels of its code book as lines."""
    figure = _figure(title)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (label, (weights, levels)) in zip(axes, panels.items(), strict=True):
        axis.hist(weights.detach().float().cpu().numpy(), bins=80, color=WEIGHT, label="weights")
        for i, level in enumerate(sorted(levels.detach().float().cpu().tolist())):
            axis.axvline(level, color=LEVEL, linewidth=1, label="levels" if i == 0 else None)
        axis.set_title(f"{label}: {len(levels)} levels", fontsize=10)
        axis.set_xlabel("weight")
        axis.locator_params(axis="x", nbins=5)
    axes[0].set_ylabel("count")
    axes[0].legend(fontsize=8, framealpha=1, edgecolor="none")
    return _png(figure)


def plot_activation_outliers(before: Float[Tensor, "... K"], after: Float[Tensor, "... K"], title: str) -> bytes:
    """Draw max |x| of every channel before and after the transforms on one scale."""
    figure = _figure(title)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, label, x, colour in zip(axes, ("before", "after"), (before, after), (BEFORE, AFTER), strict=True):
        peak = x.detach().float().abs().reshape(-1, x.shape[-1]).amax(0).cpu().numpy()
        axis.fill_between(range(len(peak)), peak, step="mid", color=colour, linewidth=0.8)
        axis.set_title(f"{label}: largest {peak.max():.3g}, median {sorted(peak)[len(peak) // 2]:.3g}", fontsize=10)
        axis.set_xlabel("channel")
        axis.margins(x=0)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("max |x|")
    return _png(figure)


def plot_front(
    points: Sequence[tuple[float, float]],
    front: Sequence[tuple[float, float]],
    labelled: Mapping[str, tuple[float, float]],
    budget: float | None,
    title: str,
) -> bytes:
    """Draw (cost, error) of all candidates of a search, their Pareto front, and some of them by name."""
    figure = _figure(title)
    axis = figure.subplots()
    axis.scatter(*zip(*points, strict=True), s=10, color=WEIGHT, label="candidates")
    axis.plot(*zip(*sorted(front), strict=True), color=AFTER, marker="o", markersize=4, label="Pareto front")
    axis.scatter(*zip(*labelled.values(), strict=True), marker="D", s=30, color=LEVEL, label="one size everywhere")
    for label, point in labelled.items():
        axis.annotate(label, point, xytext=(4, 4), textcoords="offset points", fontsize=8)
    if budget is not None:
        axis.axvline(budget, color="black", linestyle="--", linewidth=0.8, label="budget")
    axis.set_yscale("log")
    axis.set_xlabel("cost, bit operations of a sample's call")
    axis.set_ylabel("relative error of final latents")
    axis.legend(fontsize=8, framealpha=1, edgecolor="none")
    return _png(figure)


def plot_tile_maps(maps: Mapping[str, Float[Tensor, "T T"]], title: str) -> bytes:
    """Draw for every label the attention in every tile, largest dark, on one scale."""
    figure = _figure(title)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    highest = max(float(tiles.max()) for tiles in maps.values())
    for axis, (label, tiles) in zip(axes, maps.items(), strict=True):
        shown = axis.imshow((tiles.float() / highest).sqrt().cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
        axis.set_title(f"order {label}", fontsize=10)
        axis.set_xlabel("tile of keys")
    axes[0].set_ylabel("tile of queries")
    figure.colorbar(shown, ax=axes, label="root of the attention, of the largest")
    return _png(figure)


def _figure(title: str) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingMatplotlib("Plots need matplotlib. Install it with: pip install 'ditquant[plots]'") from None
    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
