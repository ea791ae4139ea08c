"""A chart's points stand where their values are, and its ticks are round numbers around them."""

import itertools
import math

import pytest

from ditquant.evaluation.charts import BOTTOM, TOP, Chart, linear_ticks, log_ticks

INF = float("inf")


@pytest.mark.parametrize("values", [[3.0, 47.0], [0.001, 0.0042], [-7.0, 9.0], [5.0], [0.0], [1e6, 1e6 + 1], [-3.0]])
def test_linear_ticks_are_round_and_span_the_values(values):
    ticks = linear_ticks(values)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 8 and ticks[0] <= min(values) and max(values) <= ticks[-1]
    assert float(f"{step:e}".split("e")[0]) == pytest.approx(round(float(f"{step:e}".split("e")[0])))
    assert all(b - a == pytest.approx(step) for a, b in itertools.pairwise(ticks))


def test_log_ticks_are_powers_of_ten():
    assert log_ticks([0.02, 300.0]) == [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
    assert log_ticks([1.0]) == [1.0, 10.0]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_points_are_where_their_values_are(scale):
    values = [10.0, 1000.0, 100.0]
    data = Chart("t", "x", "y", {"m": values}, scale=scale).page_data()
    ticks = {float(tick["text"]): tick["at"] for tick in data["y_ticks"]}
    points = data["series"][0]["points"]
    assert points[1]["y"] == ticks[1000.0] == TOP and max(ticks.values()) == BOTTOM
    warp = math.log10 if scale == "log" else float
    share = (warp(100) - warp(10)) / (warp(1000) - warp(10))
    assert points[0]["y"] - points[2]["y"] == pytest.approx(share * (points[0]["y"] - points[1]["y"]), abs=0.2)
    assert points[1]["x"] - points[0]["x"] == pytest.approx(points[2]["x"] - points[1]["x"], abs=0.11)
    assert {tick["text"]: tick["at"] for tick in data["x_ticks"]}["2"] == points[1]["x"]


def test_values_that_cannot_be_drawn_are_left_out():
    chart = Chart("t", "x", "y", {"m": [1.0, INF, None, 4.0]}, ["a", "b", "c", "d"])
    assert [point["text"] for point in chart.page_data()["series"][0]["points"]] == ["m, a: 1", "m, d: 4"]
    log = Chart("t", "x", "y", {"m": [0.0, 2.0]}, scale="log")
    assert [point["text"] for point in log.page_data()["series"][0]["points"]] == ["m, 2: 2"]
    assert Chart("t", "x", "y", {"m": [INF]}).page_data()["series"][0]["points"] == []
