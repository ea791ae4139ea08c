"""What a run takes is said before it begins, and corrected where a machine is slower than was thought."""

import pytest
import torch

import ditquant
from ditquant import auto, engine
from ditquant.calibration import by_block, forecast
from ditquant.effort import fit_seconds
from ditquant.recipe import Recipe
from tests.tiny import PROMPTS, run, tiny, tiny_pixart_pipeline

MEASURED = {  # seconds of one thread for an ordinary layer, K -> N
    "rtn-w4a8": {(384, 1536): 0.01, (1152, 1152): 0.02, (1152, 4608): 0.05},
    "smoothquant-w4a8": {(384, 1536): 0.01, (1536, 384): 0.01},
    "duquant-w4a8": {(384, 384): 0.31, (384, 1536): 0.30, (1536, 384): 1.18},
    "lrq-w4a8": {(384, 384): 0.14, (384, 1536): 0.27, (1536, 384): 0.27, (1152, 1152): 0.41, (1152, 4608): 1.21},
    "gptq-w4a8": {(384, 1536): 0.19, (1536, 384): 0.56, (1152, 1152): 0.49},
    "lrq-gptq-w4a8": {(384, 384): 0.17, (384, 1536): 0.30, (1536, 384): 0.70, (1152, 1152): 0.60, (1152, 4608): 1.67},
    "svdquant-w4a8": {(384, 1536): 0.12, (1536, 384): 0.12, (1152, 1152): 0.30, (1152, 4608): 1.47},
    "lrq-plus-w4a8": {(384, 384): 1.36, (384, 1536): 3.84, (1536, 384): 5.18, (1152, 1152): 7.4, (1152, 4608): 32.9},
    "lrq-plus-w4a4": {(384, 384): 1.37, (1536, 384): 5.72, (1152, 1152): 7.85},
    "lrq-plus-lean-w4a8": {(384, 384): 0.78, (384, 1536): 2.69, (1536, 384): 3.69, (1152, 1152): 5.13},
}


@pytest.mark.parametrize("recipe", MEASURED)
def test_fitting_takes_what_it_is_said_to_take(recipe):
    rule = Recipe.load(recipe).match("ffn_up", "x")
    for (width, rows), seconds in MEASURED[recipe].items():
        assert 0.5 < fit_seconds(rule, rows, width) / seconds < 2, (width, rows)


def lines(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "min" in line]


@pytest.fixture
def said_before(monkeypatch, capsys):
    """What stood on standard error when the transformer was called first."""
    seen: list[str] = []

    def watch(model):
        model.register_forward_pre_hook(lambda *_: seen.append(capsys.readouterr().err))
        return seen

    return watch


@pytest.mark.parametrize("name", ["pixart", "latte"])
def test_it_is_said_before_the_model_runs(name, said_before):
    model = tiny(name)
    seen = said_before(model)
    ditquant.quantize(model, "lrq-w4a8", forward=run)
    blocks = "20 layers in 2 blocks" if name == "pixart" else "layers; the model is run; statistics"
    assert blocks in seen[0] and "about 1 min to fit" in seen[0]


def test_prompts_and_steps_are_counted_and_a_call_is_timed(said_before):
    pipeline = tiny_pixart_pipeline()
    seen = said_before(pipeline.transformer)
    ditquant.quantize(pipeline, "lrq-w4a8", prompts=PROMPTS[:2], settings={"steps": 3})
    assert "2 prompts of 3 steps are painted" in seen[0] and "a call" not in seen[0] + seen[1]
    assert "a call of the model takes" in seen[2] and "min in all" in seen[2]


def test_auto_says_it_too(said_before):
    pipeline = tiny_pixart_pipeline()
    seen = said_before(pipeline.transformer)
    auto.choose(pipeline, 6.0, prompts=PROMPTS[:1], settings={"steps": 2})
    assert "1 prompt of 2 steps is painted" in seen[0] and "min to fit" in seen[0]


def test_what_takes_a_moment_is_not_announced(capsys):
    ditquant.quantize(tiny("pixart"), "rtn-w4a8")
    assert not lines(capsys)


def test_the_pace_of_the_first_block_is_told_where_it_is_another(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(by_block, "at_this_pace", lambda *given: seen.append(given))
    ditquant.quantize(tiny("pixart"), "lrq-w4a8", forward=run)
    [(part, spent, done, left, said)] = seen
    assert len(done) == len(left) == 10 and not set(done) & set(left) and spent > 0 and said > 0
    for said_before, times in ((5.0, 1), (200.0, 0), (5000.0, 1)):
        capsys.readouterr()
        forecast.at_this_pace(part, 250.0, done, left, said_before)
        assert len(lines(capsys)) == times


def test_walking_costs_calls():
    model = tiny("pixart")
    with torch.no_grad():
        part = engine._part("", model, engine.match(model, Recipe.load("lrq-plus-w4a8")), 0, [])
        plain = engine._part("", model, engine.match(model, Recipe.load("lrq-w4a8")), 0, [])
    assert forecast.passes_of(plain, 16) == 32 and forecast.passes_of(plain, 16, ready=1) == 16
    assert forecast.passes_of(part, 16) == 48 + 2 * 16 * 3
