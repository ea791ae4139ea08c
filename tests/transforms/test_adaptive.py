"""The choice between a mild and a salient rotation, and the options of every fitter."""

import json

import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.stats import LayerStats
from ditquant.transforms import FITTERS, TRANSFORMS, check_fit_options, describe, fit_adaptive, needs_data, takes_seed
from ditquant.transforms.adaptive import output_sqnr_db
from tests.transforms.salient import salient, stats_of, weight


def mild(tokens: int = 64, width: int = 384) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(5)) * 0.5


def test_metric_is_compared_with_the_threshold():
    w, stats = weight(16, 384), stats_of(mild())
    assert fit_adaptive(w, stats).kind == "hadamard"
    assert fit_adaptive(w, stats_of(salient(64, 384))).kind == "fast_dual_rotation"
    assert fit_adaptive(w, stats, threshold=stats.rms).kind == "fast_dual_rotation"
    assert fit_adaptive(w, stats, threshold=stats.rms * 1.001).kind == "hadamard"
    assert fit_adaptive(w, stats_of(salient(64, 384)), salient="dual_rotation").kind == "dual_rotation"


def test_metric_is_that_of_the_input_before_smoothing():
    w, stats = weight(16, 384), stats_of(salient(64, 384))
    smooth = FITTERS["smooth"](w, stats)
    smoothed = stats.transformed(smooth)
    assert smoothed.rms < 1 < stats.rms
    assert fit_adaptive(smooth.absorb(w), smoothed).kind == "fast_dual_rotation"
    assert describe(smooth.absorb(w), smoothed)["metric"] == stats.rms


@pytest.mark.parametrize("make", [mild, lambda: salient(64, 384), lambda: 10 * mild()])
def test_error_picks_the_smaller_measured_error(make):
    w, stats = weight(16, 384), stats_of(make())
    both = [FITTERS[kind](w, stats) for kind in ("hadamard", "fast_dual_rotation")]
    best = max(both, key=lambda t: output_sqnr_db(w, stats, t))
    assert fit_adaptive(w, stats, select="error").kind == best.kind


def test_output_sqnr_is_that_of_a_plain_quantization():
    x, w = salient(32, 96), weight(16, 96)

    def rounded(t, bits):
        scale = t.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        return torch.round(t / scale) * scale

    truth = (x @ w.T).double()
    noise = (rounded(x, 8) @ rounded(w, 3).T).double() - truth
    expected = 10 * torch.log10(truth.square().sum() / noise.square().sum())
    assert output_sqnr_db(w, stats_of(x), None, 3, 8) == pytest.approx(float(expected), abs=1e-3)
    assert output_sqnr_db(w, stats_of(x), None, None, None) == float("inf")


def test_without_data_it_is_hadamard():
    fitted = fit_adaptive(weight(8, 384), None, select="error", seed=4)
    assert torch.equal(fitted.signs, FITTERS["hadamard"](weight(8, 384), None, seed=4).signs)


def test_description_is_plain_data_and_agrees_with_the_fits():
    w, stats = weight(16, 1152), stats_of(salient(128, 1152))
    report = json.loads(json.dumps(describe(w, stats)))
    assert report["metric"] == stats.rms and report["by_metric"] == fit_adaptive(w, stats).kind
    assert report["by_error"] == fit_adaptive(w, stats, select="error").kind == "fast_dual_rotation"
    assert report["salient_db"] > report["mild_db"]


def test_every_transform_can_be_named_by_a_recipe():
    assert set(FITTERS) == {*TRANSFORMS, "adaptive_rotation"}
    assert {name for name in FITTERS if not needs_data(name)} == {"hadamard", "adaptive_rotation"}
    assert not takes_seed("smooth") and takes_seed("hadamard")


@pytest.mark.parametrize("kind", sorted(FITTERS))
def test_fitters_without_data_work_or_say_what_they_need(kind: str):
    if needs_data(kind):
        with pytest.raises(DitQuantError, match="needs calibration data"):
            FITTERS[kind](weight(8, 96), None)
    else:
        assert FITTERS[kind](weight(8, 96), None).kind == "hadamard"


@pytest.mark.parametrize("kind", ["smooth", "fast_dual_rotation", "adaptive_rotation"])
def test_unusable_statistics_are_refused(kind: str):
    with pytest.raises(DitQuantError, match="96 channels"):
        FITTERS[kind](weight(8, 128), stats_of(salient(8, 96)))
    broken = LayerStats(96)
    broken.update(torch.full((2, 96), float("nan")))
    with pytest.raises(DitQuantError, match="NaN"):
        FITTERS[kind](weight(8, 96), broken)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("hadamrd", {}, "Did you mean 'hadamard'"),
        ("smooth", {"aplha": 0.5}, "Did you mean 'alpha'"),
        ("smooth", {"weight": 1}, "unknown option"),
        ("smooth", {"alpha": 2}, "from 0 to 1"),
        ("smooth", {"alpha": float("nan")}, "from 0 to 1"),
        ("hadamard", {"block": 1}, "at least 2"),
        ("hadamard", {"block": "128"}, "at least 2"),
        ("hadamard", {"block": True}, "at least 2"),
        ("dual_rotation", {"seed": -1}, "at least 0"),
        ("adaptive_rotation", {"select": "best"}, "metric or error"),
        ("adaptive_rotation", {"salient": "smooth"}, "fast_dual_rotation"),
        ("adaptive_rotation", {"mild": ["hadamard"]}, "fast_dual_rotation"),
        ("adaptive_rotation", {"act_bits": 16}, "2 to 8"),
        ("adaptive_rotation", {"threshold": "high"}, "a number"),
    ],
)
def test_bad_options_are_refused_before_and_while_fitting(kind: str, options: dict, message: str):
    for call in (
        lambda: check_fit_options(kind, options),
        lambda: FITTERS[kind](weight(8, 96), stats_of(salient(8, 96)), **options),
    ):
        with pytest.raises(DitQuantError, match=message):
            call()
