"""The masks that sparse attention is compared with have the density they say, and the comparison runs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ditquant.attention import TokenGrid
from tests.evaluation.video import tiny_video_pipeline

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GRID = TokenGrid(5, 16, 16, text=30)


@pytest.fixture
def masks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import paro_masks

    return paro_masks


@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("rule", ["SparseVideoGen", "SpargeAttn"])
def test_a_mask_has_its_density_and_follows_the_attention(masks, monkeypatch, rule, density):
    kept = []
    attend = masks.attend
    monkeypatch.setattr(
        masks, "attend", lambda *x, **s: kept.append((s["mask"] | GRID.text_tiles(), s["order"])) or attend(*x, **s)
    )
    generator = torch.Generator().manual_seed(0)
    frame, place = torch.arange(1280) // 256, torch.arange(1280) % 256
    codes = [F.normalize(torch.randn(n, 64, generator=generator), dim=-1) for n in (5, 256)]
    heads = torch.stack([codes[0][frame], codes[1][place]])  # one head looks at its frame, one at its place
    text = torch.randn(2, 30, 64, generator=generator) * 0.1
    q = torch.cat([text, 9 * heads], 1)[None] + 0.05 * torch.randn(1, 2, 1310, 64, generator=generator)
    v = torch.randn(1, 2, 1310, 64, generator=generator)
    out = getattr(masks, rule)(GRID, density)(q, q, v)
    exact = F.scaled_dot_product_attention(q, q, v)
    (mask, order), tiles = kept[0], GRID.tiles
    assert mask.double().mean((1, 2)).sub(density).abs().max() <= (tiles + 1) / tiles**2
    error = ((out - exact).square().mean((0, 2, 3)) / exact.square().mean((0, 2, 3))).sqrt()
    if rule == "SparseVideoGen" and density < 1:
        assert order.tolist() == [0, 3]
    assert density < 1 or (error < 1e-4).all()


def test_the_comparison_runs_and_goes_on(masks, monkeypatch, tmp_path, capsys):
    import paro

    folder, file = tmp_path / "video", tmp_path / "prompts.txt"
    tiny_video_pipeline().save_pretrained(folder)
    file.write_text("a red circle\na yellow triangle\n")
    monkeypatch.setattr(paro, "DENSITIES", (0.95,))
    monkeypatch.setattr(paro, "BOTH", ((0.95, 8),))
    words = ["paro.py", "--model", folder, "--prompts", file, "--fit", 1, "--test", 1, "--steps", 2]
    words += ["--height", 64, "--width", 64, "--frames", 9, "-o", tmp_path / "paro.json"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    paro.main()
    rows = json.loads((tmp_path / "paro.json").read_text())["rows"]
    assert len(rows) >= 10 and all(0 < row["step_sqnr_db"] < 80 for row in rows.values())
    assert rows["PARO INT8"]["step_sqnr_db"] > rows["PARO INT4"]["step_sqnr_db"]
    monkeypatch.setattr(paro.Bench, "measure", None)  # what is there is not measured again
    paro.main()
    assert "PARO INT8" in capsys.readouterr().out
