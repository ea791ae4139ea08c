"""Plots are PNGs that show their data, and are left out with a reason where matplotlib is not installed."""

import io
import sys

import numpy as np
import torch
from PIL import Image

from ditquant.evaluation import drawn, plot_activation_outliers, plot_codebook


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_a_level_is_a_line_in_the_plot():
    weights = torch.randn(500)
    few, many = torch.linspace(-2, 2, 2), torch.linspace(-2, 2, 16)

    def orange(levels):
        found = pixels(plot_codebook({"4 bits": (weights, levels)}, "row 0"))
        return found[..., 0] - found[..., 2] > 60  # the only warm colour; thin lines are blended with the ground

    assert orange(many).sum() > 4 * orange(few).sum() > 0
    both = pixels(plot_codebook({"3 bits": (weights, few), "4 bits": (weights.bfloat16(), many)}, "row 0"))
    assert both.shape == pixels(plot_codebook({"4 bits": (weights, few)}, "row 0")).shape


def test_outliers_are_drawn_on_one_scale():
    before = torch.ones(10, 64)
    before[:, 5] = -100
    spread = torch.full((2, 5, 64), 2.0)
    spread_out = pixels(plot_activation_outliers(before, spread, "layer"))
    nothing_left = pixels(plot_activation_outliers(before, torch.zeros(64), "layer"))
    blue = [(((p - (37, 99, 168)) ** 2).sum(-1) < 2000).sum() for p in (spread_out, nothing_left)]
    assert blue[0] > blue[1]
    assert blue[0] < 0.05 * spread_out[..., 0].size, "2 of 100 is a thin band"


def test_without_matplotlib_the_reason_is_told(monkeypatch):
    plot = drawn(plot_codebook, {"x": (torch.randn(9), torch.zeros(2))}, title="code book")
    assert plot.title == "code book" and plot.png.startswith(b"\x89PNG") and plot.note == ""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plot = drawn(plot_codebook, {"x": (torch.randn(9), torch.zeros(2))}, title="code book")
    assert plot.png is None and plot.note == "Plots need matplotlib. Install it with: pip install 'ditquant[plots]'"


def test_pyplot_is_not_touched():
    before = "matplotlib.pyplot" in sys.modules
    plot_activation_outliers(torch.ones(4), torch.ones(4), "x")
    assert ("matplotlib.pyplot" in sys.modules) == before
