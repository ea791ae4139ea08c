"""Intervals against scipy-free truths: coverage, and the normal approximation; go and no-go."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from ditquant.evaluation.intervals import interval, paired_interval
from ditquant.evaluation.results import ModelFacts, ModelResult, Results
from ditquant.evaluation.verdict import verdict
from ditquant.threshold import Threshold


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(20, 2, 400)
    low, high = interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02) and high == pytest.approx(
        values.mean() + half, abs=0.02
    )


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_it_covers_the_truth_about_as_often_as_it_says(statistic):
    generator = np.random.default_rng(1)
    inside = [low <= 5 <= high for low, high in (interval(generator.normal(5, 1, 40), statistic) for _ in range(200))]
    assert 0.88 < np.mean(inside) < 0.99


def test_pairing_removes_what_both_share():
    generator = np.random.default_rng(2)
    shared = generator.normal(0, 10, 64)
    first, second = shared + 1 + generator.normal(0, 0.1, 64), shared + generator.normal(0, 0.1, 64)
    low, high = paired_interval(first, second)
    assert 0.9 < low < 1 < high < 1.1
    assert interval(first)[1] - interval(first)[0] > 10 * (high - low)


def test_it_is_the_same_every_time_and_says_nothing_of_infinities():
    assert interval([1.0, 2.0, 4.0]) == interval([1.0, 2.0, 4.0])
    assert all(math.isnan(end) for end in interval([1.0, math.inf]))
    assert all(math.isnan(end) for end in paired_interval([1.0, math.inf], [math.inf, 1.0]))


def test_of_a_single_prompt_nothing_is_known():
    for statistic in ("mean", "median", "share"):
        assert all(math.isnan(end) for end in interval([1.0], statistic))
        assert all(math.isnan(end) for end in paired_interval([1.0], [0.0], statistic))


@pytest.mark.parametrize(("right", "count"), [(0, 8), (8, 8), (5, 8), (63, 64)])
def test_the_interval_of_a_share_is_wilsons(right, count):
    low, high = interval([1.0] * right + [0.0] * (count - right), "share")
    known = binomtest(right, count).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert high - low > 0.05, "equal captions are no certainty"


@pytest.mark.parametrize("differ", [0.0, 0.3])
def test_differences_of_shares_cover_the_truth_and_are_never_certain(differ):
    generator, inside = np.random.default_rng(3), []
    for _ in range(300):
        values = (generator.random(20) < 0.9).astype(float)
        others = np.where(generator.random(20) < differ, 0.0, values)
        low, high = paired_interval(values, others, "share")
        inside.append(low <= 0.9 * differ <= high)
    assert high - low > 0.05 and np.mean(inside) > 0.91


def some_results():
    models = [
        ModelResult("full", ModelFacts(), 1.0),
        ModelResult("good", ModelFacts(), 1.0, {"step_sqnr_db": [20.0, 30.0], "psnr_db": [30.0, 10.0, 31.0]}),
        ModelResult("bad", ModelFacts(), 1.0, {"step_sqnr_db": [10.0, 20.0], "psnr_db": [math.nan] * 3}),
    ]
    return Results(["a", "b", "c"], [1, 2, 3], {}, models)


def test_go_and_no_go():
    go, lines = verdict(some_results(), [Threshold.parse("step_sqnr_db >= 25"), Threshold.parse("psnr_db>=30")])
    assert not go
    assert lines == [
        "good: go",
        "bad: no-go, step_sqnr_db 15 is not >= 25, psnr_db nan is not >= 30",
    ]
    assert verdict(some_results(), [Threshold.parse("step_sqnr_db>=-1e3")])[0]
    assert not verdict(some_results(), [Threshold.parse("step_sqnr_db<=14")])[0]


def test_the_thresholds_of_a_recipe_are_for_the_models_that_it_made():
    results = some_results()
    assert verdict(results) == (True, [])
    results.models[2].facts = ModelFacts("mine", thresholds=("step_sqnr_db>=16", "psnr_db<=99"))
    bad = "bad: no-go, step_sqnr_db 15 is not >= 16 (of its recipe), psnr_db nan is not <= 99 (of its recipe)"
    assert verdict(results) == (False, [bad])
    go, lines = verdict(results, [Threshold.parse("step_sqnr_db>=14")])
    assert not go and lines == ["good: go", "bad: no-go, psnr_db nan is not <= 99 (of its recipe)"]
    asked = [Threshold.parse("step_sqnr_db>=14"), Threshold.parse("psnr_db<=1e3")]
    assert verdict(results, asked)[1][1] == "bad: no-go, psnr_db nan is not <= 1000"


def test_metrics_that_are_not_measured():
    go, lines = verdict(some_results(), [Threshold.parse("caption_accuracy>=0")])
    only = "only scenes of the shipped models have it"
    assert not go and lines[0] == f"good: no-go, caption_accuracy was not measured ({only})"


@pytest.mark.parametrize("note", ["caption accuracy", "LPIPS", "FID, KID", "kid_real"])
def test_the_reason_is_told_why_a_metric_was_not_measured(note):
    results = some_results()
    results.notes = ["left out: x", f"{note} left out: prompt 1 is bad."]
    metric = {"caption accuracy": "caption_accuracy", "LPIPS": "lpips", "FID, KID": "fid"}.get(note, note)
    _, lines = verdict(results, [Threshold.parse(f"{metric}<=0"), Threshold.parse("clip_score>=0")])
    missed = f"{metric} was not measured (prompt 1 is bad), clip_score was not measured"
    assert lines[0] == f"good: no-go, {missed}"
