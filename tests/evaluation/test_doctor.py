"""The doctor's figures are those computed by hand from all inputs, and ill layers are named."""

import math

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn

from ditquant.evaluation import write_page
from ditquant.evaluation.doctor import diagnose, examine
from ditquant.evaluation.doctor_page import doctor_sections, layers_table
from ditquant.evaluation.watch import watching
from ditquant.recipe import Recipe
from ditquant.rule import Rule
from ditquant.specs import TransformSpec, WeightSpec
from ditquant.transforms import FITTERS
from tests.evaluation.browser import launched, opened
from tests.tiny import PROMPTS, tiny_pixart_pipeline
from tests.transforms.salient import salient

WIDTH = 256
LRQ = Rule(
    target="role:*",
    weight=WeightSpec(4),
    transforms=(TransformSpec("smooth", {"alpha": 0.5}), TransformSpec("adaptive_rotation", {"threshold": 1e9})),
)


def layer(outputs: int = 48) -> nn.Linear:
    linear = nn.Linear(WIDTH, outputs, bias=False)
    noise = torch.randn(outputs, WIDTH, generator=torch.Generator().manual_seed(1))
    linear.weight.data = noise * 0.05 * (1 + noise.square())
    return linear


def seen(linear: nn.Module, *inputs: torch.Tensor):
    with watching({"x": linear}) as found, torch.no_grad():
        for x in inputs:
            linear(x)
    return found


def db(truth: torch.Tensor, value: torch.Tensor) -> float:
    return 10 * math.log10(float(truth.double().square().sum() / (truth - value).double().square().sum()))


def rounded(rows: torch.Tensor, bits: int) -> torch.Tensor:
    scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (rows / scale).round() * scale


def test_figures_of_the_inputs():
    linear, x = layer(), salient(200, WIDTH)
    found = diagnose("x", linear, "ffn_up", None, seen(linear, x[:150], x[None, 150:]))
    channels = np.abs(x.numpy()).max(0)
    assert found.trouble == "" and found.role == "ffn_up"
    assert found.rms == pytest.approx(float(np.sqrt(np.mean(x.numpy().astype(np.float64) ** 2))))
    assert found.absmax == pytest.approx(channels.max())
    assert found.channel_ratio == pytest.approx(channels.max() / np.sort(channels)[(WIDTH - 1) // 2])
    kurtosis = [scipy_stats.kurtosis(t.detach().numpy().ravel(), fisher=False) for t in (x, linear.weight)]
    assert [found.input_kurtosis, found.weight_kurtosis] == pytest.approx(kurtosis, rel=1e-5)
    assert np.allclose(found.channels["none"], channels)


def test_formats_and_rotations_against_plain_rounding():
    linear, x = layer(), salient(200, WIDTH)
    found = diagnose("x", linear, "", None, seen(linear, x))
    weight = linear.weight.detach()
    truth = x @ weight.T
    for bits in (3, 4):
        plain = db(truth, x @ rounded(weight, bits).T)
        assert found.formats[f"affine {bits}"] > plain - 0.5, "round to nearest, with its gain corrected"
        assert found.formats[f"twin_log {bits}"] > found.formats[f"affine {bits}"], "the weights are heavy-tailed"
    assert found.formats["affine 4"] > found.formats["affine 3"] + 4
    assert found.none_db == pytest.approx(db(truth, rounded(x, 4) @ rounded(weight, 4).T), abs=0.01)
    for kind, shown in (("hadamard", found.mild_db), ("fast_dual_rotation", found.salient_db)):
        rotation = FITTERS[kind](weight, seen(linear, x).stats["x"])
        made = rounded(rotation(x), 4) @ rounded(rotation.absorb(weight), 4).T
        assert shown == pytest.approx(db(truth, made), abs=0.01)
        assert shown > found.none_db + 3
    better = "fast_dual_rotation" if found.salient_db > found.mild_db else "hadamard"
    assert found.by_metric == "fast_dual_rotation" and found.by_error == better
    calm = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.5
    assert diagnose("x", linear, "", None, seen(linear, calm)).by_metric == "hadamard"


def test_a_recipe_is_judged_behind_its_smoothing():
    linear, x = layer(), salient(200, WIDTH)
    watched = seen(linear, x)
    found = diagnose("x", linear, "", LRQ, watched)
    smooth = FITTERS["smooth"](linear.weight.detach(), watched.stats["x"], alpha=0.5)
    inputs, weight = smooth(x), smooth.absorb(linear.weight.detach())
    assert found.none_db == pytest.approx(
        db(x @ linear.weight.detach().T, rounded(inputs, 4) @ rounded(weight, 4).T), abs=0.01
    )
    assert found.by_metric == "hadamard", "the recipe's own threshold"
    assert found.rms == diagnose("x", linear, "", None, watched).rms


def test_ill_layers_are_named():
    linear, x = layer(), torch.ones(2, WIDTH)
    never = seen(linear)
    assert never.trouble("x") == "never called by these prompts"
    assert diagnose("x", linear, "", None, never).rms is None
    broken = torch.full((2, WIDTH), torch.nan)
    assert diagnose("x", linear, "", None, seen(linear, broken, x)).trouble == "its input is NaN or infinite"
    assert diagnose("x", linear, "", None, seen(linear, broken, x)).rms == 1, "finite calls are still measured"
    assert seen(linear, 1e5 * x).trouble("x").startswith("overflows in float16: values up to")
    large = nn.Linear(WIDTH, 4, bias=False)
    large.weight.data.fill_(3e38)
    said = "its output overflows float32: it reaches 7.68e+40 from a finite input, float32 holds 3.4028e+38"
    assert seen(large, x).trouble("x") == said
    large.weight.data[0, 0] = torch.nan
    found = diagnose("x", large, "", None, seen(large, x))
    assert found.trouble == "its weight holds NaN or infinite values" and found.formats == {}


@pytest.fixture(scope="module")
def examined():
    pipeline = tiny_pixart_pipeline()
    with torch.no_grad():
        pipeline.transformer.transformer_blocks[0].ff.net[2].weight.mul_(1e7)
    return examine(pipeline, PROMPTS[:2], settings={"steps": 2})


def test_all_layers_of_a_pipeline_or_those_of_a_recipe(examined):
    assert len(examined.layers) == 20 and len(layers_table(examined.layers).rows) == 20
    ill = {one.name for one in examined.layers if one.trouble}
    assert "transformer_blocks.0.ff.net.2" in ill and "transformer_blocks.0.attn1.to_q" not in ill
    rules = [{"target": "role:ffn_up", "weight": {"bits": 4}, "transforms": ["hadamard"]}]
    recipe = Recipe.load({"name": "r", "rules": rules})
    some = examine(tiny_pixart_pipeline(), PROMPTS[:1], recipe, {"steps": 2})
    assert [one.name for one in some.layers] == [f"transformer_blocks.{i}.ff.net.0.proj" for i in range(2)]


@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_in_a_browser(examined, tmp_path, width):
    write_page(tmp_path / "report.html", "Layers", doctor_sections(examined))
    with launched() as browser, opened(browser, tmp_path / "report.html", width) as (page, errors):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        headings = page.locator("h2").all_inner_texts()
        assert headings == ["Trouble", "Rotations", "Formats", "Inputs", "Channels", "Layers"]
        assert page.locator(".chart").nth(0).locator("circle").count() == 60
        page.get_by_role("button", name="kurtosis", exact=True).click()
        shown = page.locator("section").last.locator("tbody tr td:nth-child(6)").all_inner_texts()
        assert [float(text) for text in shown] == sorted(float(text) for text in shown) and len(shown) == 20
        assert errors == []
