"""Thresholds are read as they are typed, by recipes and on the command line; every measured figure can have one."""

import pytest

from ditquant.errors import DitQuantError
from ditquant.evaluation.table import SETS, measures
from ditquant.threshold import METRICS, Threshold, overridden, read_thresholds


def test_every_figure_of_a_comparison_can_have_one():
    assert set(METRICS) == {column.key for column in (*measures(), *SETS)}


@pytest.mark.parametrize(
    "text",
    ["", "psnr_db", "psnr_db>20", "psnr_db>=x", ">=3", "psnr_db>=1>=2", "psnr_db>=--1", "psnr_db>=1e999", 20, None],
)
def test_what_is_no_threshold(text):
    with pytest.raises(DitQuantError, match="is no threshold"):
        Threshold.parse(text)


def test_metrics_that_are_not_known():
    with pytest.raises(DitQuantError, match=r"unknown metric 'psnr'. Did you mean 'psnr_db'"):
        Threshold.parse("psnr>=3")


@pytest.mark.parametrize("text", ["step_sqnr_db>=20", "ssim <= 1e-30", " kid>=-.5"])
def test_written_as_it_is_read(text):
    assert Threshold.parse(str(Threshold.parse(text))) == Threshold.parse(text)


def test_lists_name_where_they_stand():
    assert read_thresholds(["ssim>=1"], "x") == (Threshold("ssim", ">=", 1.0),)
    for data in ({"ssim": 1}, "ssim>=1", None):
        with pytest.raises(DitQuantError, match=r"^'thresholds' of mine must be a list such as \['step_sqnr_db>=20'\]"):
            read_thresholds(data, "'thresholds' of mine")
    with pytest.raises(DitQuantError, match=r"^mine: 'ssim' is no threshold"):
        read_thresholds(["ssim"], "mine")


def test_those_given_stand_in_for_those_of_the_same_metric():
    own, given = read_thresholds(["ssim>=0.5", "lpips<=1"], "own"), read_thresholds(["ssim>=0.9", "ssim<=1"], "given")
    assert [str(t) for t in overridden(own, given)] == ["lpips<=1.0", "ssim>=0.9", "ssim<=1.0"]
    assert overridden(own, ()) == own
