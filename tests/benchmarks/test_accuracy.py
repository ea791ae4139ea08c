"""The accuracy benchmark: what it injects changes nothing, its verdicts follow the values, finished rows are kept."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ditquant.recipe import Recipe, list_recipes
from tests.tiny import run, tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def found_by_name(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in [name for name in sys.modules if name.startswith("accuracy")]:
        del sys.modules[name]


@pytest.mark.parametrize("family", ["pixart", "dit"])
def test_injected_channels_leave_full_precision_as_it_was(family):
    from accuracy_model import SALIENT_CHANNELS, inject

    model = tiny(family, num_layers=4)
    truth, seen = run(model), {}
    for name in ("transformer_blocks.1.attn1.to_out.0", "transformer_blocks.2.attn1.to_out.0"):
        kept = seen.setdefault(name, [])
        model.get_submodule(name).register_forward_pre_hook(lambda _m, args, kept=kept: kept.append(args[0]))
    run(model)
    assert inject(model) == ["transformer_blocks.1.attn1.to_out.0", "transformer_blocks.3.attn1.to_out.0"]
    assert torch.equal(run(model), truth)
    (before, after), (same, again) = seen.values()
    louder = after.abs().amax((0, 1)) / before.abs().amax((0, 1))
    assert sorted(louder.tolist())[-SALIENT_CHANNELS:] == pytest.approx([64.0] * SALIENT_CHANNELS)
    assert int((louder > 1.01).sum()) == SALIENT_CHANNELS
    torch.testing.assert_close(same, again, rtol=1e-4, atol=1e-5)


def made(method, bits, values, table="methods", size=4.0, **more):
    return {"table": table, "name": method, "bits_asked": bits, "seed": 0, "step_sqnr_db": values, "bits": size} | more


def test_a_bar_is_met_or_missed_as_the_intervals_say():
    from accuracy_page import Found, bars

    rows = [
        made("rtn", "w4a8", [24.0, 25.0]),
        made("gptq", "w4a8", [33.0, 34.0]),
        made("lrq-plus", "w3a8", [30.0, 32.0]),
    ]
    rows += [made("lrq-plus", "w4a8", [36.0, 36.0]), made("rtn", "w8a8", [35.0, 35.5])]
    lines = bars(Found(rows)).splitlines()
    (across,) = [line for line in lines if line.startswith("| lrq-plus W3A8 beats 2 others at W4A8")]
    assert "31.00 against gptq's 33.50" in across and "**missed**: 1 of 2 are beaten" in across
    (reached,) = [line for line in lines if "beats rtn at W8A8" in line]
    assert "36.00 against rtn's 35.25" in reached and reached.endswith("| met, of one seed |")


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        ([36.0, 38.0, 37.0], [35.0, 36.0, 36.0], "met, of one seed"),
        ([36.0, 30.0, 37.0], [35.0, 36.0, 31.0], "**not shown**: 0 of 1 are beaten"),  # above by a third of a decibel
        ([36.0, 30.0, 35.0], [35.0, 36.0, 31.0], "**missed**: 0 of 1 are beaten"),
        ([36.0], [35.0], "**not shown**: 0 of 1 are beaten"),
    ],
)
def test_a_bar_is_met_only_where_the_interval_excludes_zero(mine, theirs, said):
    from accuracy_page import Found, bars

    text = bars(Found([made("lrq-plus", "w4a8", mine), made("rtn", "w8a8", theirs)]))
    (line,) = [line for line in text.splitlines() if line.startswith("| lrq-plus W4A8 beats rtn at W8A8")]
    assert line.endswith(f"| {said} |")
    assert ("one sample" in line) == (len(mine) == 1)
    assert ("lrq-plus W4A8 beats rtn at W8A8." in text) == ("met" not in said)


@pytest.mark.parametrize(
    ("plus", "said"),
    [
        ([0.9, 0.9], "met"),
        ([0.9, 0.5], "met within the interval, which does not exclude a loss of 30.0 points"),
        ([0.4, 0.5], "**missed**"),
    ],
)
def test_no_loss_of_captions_is_shown_only_where_the_interval_excludes_one(plus, said):
    from accuracy_page import Found, bars

    full = {"full precision": [0.8, 0.8], "lrq-plus": plus}
    rows = [made(name, "w4a8", [], "captions", accuracy=values) for name, values in full.items()]
    bar = "| lrq-plus W4A8 shows what was asked for"
    (line,) = [line for line in bars(Found(rows)).splitlines() if line.startswith(bar)]
    assert line.endswith(f"| {said} |")


def test_rivals_of_fewer_bits_are_told_apart(tmp_path):
    from accuracy_model import DIGITS
    from accuracy_page import write_page

    rows = [
        made("rtn", "w4a8", [24.0, 25.0], size=4.2),
        made("gptq", "w4a8", [37.0, 34.0], size=4.2),
        made("svdquant", "w4a8", [33.0, 34.0], size=7.9),
        made("lrq-plus-lean", "w4a8", [36.0, 36.0], size=4.1),
        made("lrq-plus", "w4a8", [40.0, 40.0], size=7.7),
    ]
    write_page(rows, tmp_path / "results.md", 0, DIGITS)
    text = (tmp_path / "results.md").read_text()
    lean, plus = (
        next(line for line in text.splitlines() if line.startswith((f"| {form} W4A8 | 4.1", f"| {form} W4A8 | 7.7")))
        for form in ("lrq-plus-lean", "lrq-plus")
    )
    assert "| 4.100 | rtn 4.200, gptq 4.200, svdquant 7.900 | **not shown**: 2 of 3 are beaten; " in lean
    assert lean.endswith("| none |  | **not shown**: 2 of 3 are beaten |")
    assert "| 7.700 | svdquant 7.900 | all, of one seed; +6.00 to +7.00 dB over svdquant | rtn 4.200, gptq" in plus
    assert plus.endswith("| **missed**: 2 of 3 have fewer bits |")
    assert "is missed in 1 of 2 rows; the rivals of as many bits or more are all beaten but in lrq-plus-lean" in text


def test_values_of_all_seeds_are_one_cell(tmp_path):
    from accuracy_model import SHAPES
    from accuracy_page import cell, write_page

    assert cell([]) == "" and cell([20.0, 20.0]) == "20.00 (0.00)" and cell([20.0]) == "20.00 (one sample)"
    rows = [made("rtn", "w4a8", [20.0, 22.0]), made("rtn", "w4a8", [24.0, 26.0]) | {"seed": 1}]
    write_page(rows, tmp_path / "results.md", 0, SHAPES)
    text = (tmp_path / "results.md").read_text()
    assert "| W4A8 | **23.00 (" in text and (tmp_path / "images" / "accuracy.png").stat().st_size > 1000


def test_a_finished_row_is_known_by_its_weights_and_recipe(tmp_path):
    from accuracy import finished, key
    from accuracy_rows import Row, rows

    row = Row("methods", "rtn", "w4a8", Recipe.load("rtn-w4a8"), 0)
    others = [replace(row, seed=1), replace(row, recipe=Recipe.load("rtn-w4a6")), replace(row, salient=True)]
    assert len({key("m", "a", r) for r in (row, *others)} | {key("m", "b", row), key("n", "a", row)}) == 6
    assert key("m", "a", row) == key("m", "a", replace(row, recipe=Recipe.load("rtn-w4a8")))
    path = tmp_path / "rows.json"
    assert finished(path, "a") == {}
    path.write_text(json.dumps({"weights": "a", "rows": {"x": {}}}))
    assert finished(path, "a") == {"x": {}} and finished(path, "b") == {}
    every = rows()
    assert len({key("m", "a", r) for r in every}) == len(every)


def test_methods_are_compared_on_the_seeds_that_both_have():
    from accuracy_page import Found, bars

    rows = [made("lrq-plus", "w4a8", [36.0, 38.0]), made("rtn", "w8a8", [35.0, 36.0])]
    rows.append(made("rtn", "w8a8", [90.0, 90.0]) | {"seed": 1})
    (line,) = [line for line in bars(Found(rows)).splitlines() if "beats rtn at W8A8" in line]
    assert "37.00 against rtn's 35.50" in line and line.endswith("| 1 | met, of one seed |")
    assert "not measured" in bars(Found(rows[:1] + rows[2:]))


def test_what_the_bars_need_has_three_seeds_and_the_rest_one():
    from accuracy_rows import HARD, METHODS, rows

    known = list_recipes()
    found = [(row.table, row.name, row.bits, row.seed) for row in rows()]
    assert len(found) == len(set(found))
    for method in METHODS:
        for bits in HARD:
            seeds = {0, 1, 2} if f"{method}-{bits}" in known else set()
            assert {s for t, n, b, s in found if (t, n, b) == ("methods", method, bits)} == seeds
        once = {0} if f"{method}-w6a6" in known else set()
        assert {s for t, n, b, s in found if (t, n, b) == ("methods", method, "w6a6")} == once
    assert {s for t, n, b, s in found if (t, n, b) == ("methods", "rtn", "w8a8")} == {0, 1, 2}


@pytest.mark.parametrize("model", ["pixart-shapes", "dit-digits"])
def test_no_condition_both_calibrates_and_tests(model):
    from accuracy_model import MODELS, conditions

    assert model in MODELS
    for seed in range(3):
        calibration, tested = (conditions(model, 8, seed, held_out) for held_out in (False, True))
        assert len(calibration) == len(tested) == 8 and not set(calibration) & set(tested)
