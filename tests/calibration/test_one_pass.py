"""What cannot be run block by block sees the full-precision model; Gram matrices are never all in memory."""

import pytest
import torch
from torch import nn

import ditquant
from ditquant import engine
from ditquant.calibration import collect, one_pass
from ditquant.stats import LayerStats
from tests.tiny import run, tiny

GPTQ = {
    "name": "gptq",
    "rules": [{"target": "role:*", "weight": {"bits": 4}, "quantizer": "gptq"}],
}


@pytest.fixture
def alive(monkeypatch):
    """The most Gram matrices that were held at the same time."""
    counts = {"now": 0, "most": 0}
    create = LayerStats.__init__

    def init(self, *args, gram=False, **kwargs):
        create(self, *args, gram=gram, **kwargs)
        self.token = Token() if gram else None

    class Token:
        def __init__(self):
            counts["now"] += 1
            counts["most"] = max(counts.values())

        def __del__(self):
            counts["now"] -= 1

    monkeypatch.setattr(LayerStats, "__init__", init)
    return counts


def test_a_walk_holds_the_gram_matrices_of_one_block(alive):
    ditquant.quantize(tiny("pixart"), GPTQ, forward=run)
    assert alive == {"now": 0, "most": 10}


def test_one_pass_runs_again_where_the_gram_matrices_are_too_large(alive, monkeypatch):
    runs = []

    def forward(model):
        runs.append(1)
        run(model)

    whole, parted = tiny("latte"), tiny("latte")
    ditquant.quantize(whole, GPTQ, forward=forward)
    most = alive["most"]
    assert len(runs) == 1 and alive["now"] == 0
    alive["most"] = 0
    monkeypatch.setattr(one_pass, "GRAM_LIMIT", 4 * 32**2 * 7)
    ditquant.quantize(parted, GPTQ, forward=forward)
    assert len(runs) > 3 and alive["most"] <= 7 < most
    one, other = whole.state_dict(), parted.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_without_samples_seeds_do_not_matter_and_every_layer_is_seen():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(3, 4)
    seen = collect({"part:0": model[0], "part:1": model[1]}, lambda: model(x), grams=["part:1"])
    assert torch.equal(seen["part:0"].absmax, x.abs().amax(0)) and seen["part:1"].count == 3
    assert seen["part:0"]._gram is None and seen["part:1"]._gram is not None


def test_the_forecast_counts_what_is_left(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "fit_seconds", lambda rule, rows, columns, data: 60.0 * rows * columns * data)
    model = tiny("pixart")
    weights = sum(m.weight.numel() for m in model.transformer_blocks.modules() if isinstance(m, nn.Linear))
    ditquant.quantize(model, "lrq-w4a8", forward=run, work_dir=tmp_path)
    before, after, *_ = capsys.readouterr().err.splitlines()
    assert "20 layers in 2 blocks; the model is run, at most 16 calls are recorded" in before
    assert f"about {weights} min to fit" in before
    assert "20 layers in 2 blocks; 1 recorded calls take 0 MiB of memory and 0 MiB of disk" in after
    assert f"about {weights} min are left" in after
    ditquant.quantize(tiny("pixart"), "lrq-w4a8", forward=run, work_dir=tmp_path)
    assert "2 of them finished before" in capsys.readouterr().err
