"""Models are compared prompt by prompt with the first other one, and with the reference in what it has by itself."""

import json
import math

from ditquant.evaluation import ModelFacts, ModelResult, Results, differences_table
from ditquant.evaluation.intervals import paired_interval
from ditquant.evaluation.pairs import differences
from ditquant.evaluation.report import report_sections

FIRST, SECOND = [30.0, 20.0, 41.0, 29.0], [31.0, 22.0, 44.0, 30.0]


def results() -> Results:
    captions = {"caption_accuracy": [1.0] * 4}
    return Results(
        ["a", "b", "c", "d"],
        [0, 1, 2, 3],
        {},
        [
            ModelResult("full", ModelFacts(), 1.0, captions),
            ModelResult("one", ModelFacts(), 1.0, {"psnr_db": FIRST, "step_sqnr_db": [1.0, 2.0]} | captions),
            ModelResult("two", ModelFacts(), 1.0, {"psnr_db": SECOND, "step_sqnr_db": [2.0, 2.5]} | captions),
            ModelResult("same", ModelFacts(), 1.0, {"psnr_db": [math.inf] * 4, "step_sqnr_db": [math.inf] * 2}),
        ],
    )


def test_pairs_and_their_intervals():
    found = {(one.model, one.other, one.metric): one for one in differences(results().models)}
    assert [pair for pair in found if pair[2] != "psnr_db"] == [
        ("one", "full", "caption_accuracy"),
        ("two", "full", "caption_accuracy"),
        ("two", "one", "step_sqnr_db"),
        ("two", "one", "caption_accuracy"),
        ("same", "one", "step_sqnr_db"),
    ]
    psnr = found["two", "one", "psnr_db"]
    assert psnr.value == 1.0 and (psnr.low, psnr.high) == paired_interval(SECOND, FIRST, "median")
    assert found["two", "one", "step_sqnr_db"].value == 0.75
    captions = found["two", "full", "caption_accuracy"]
    assert captions.value == 0 and captions.low < -0.2 and captions.high > 0.2
    infinite = found["same", "one", "psnr_db"]
    assert infinite.value == math.inf and math.isnan(infinite.low)


def test_they_are_in_the_file_the_table_and_the_page(tmp_path):
    results().save(tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text())["differences"]
    assert {"model": "two", "other": "one", "metric": "psnr_db"}.items() <= stored[2].items() and stored[2][
        "value"
    ] == 1
    table = differences_table(results())
    cells = [dict(zip([column.label for column in table.columns], row, strict=True)) for row in table.cells()]
    assert cells[0]["model"] == "one" and cells[0]["minus"] == "full" and cells[0]["PSNR dB"] == "–"
    assert cells[0]["caption accuracy"] == "+0.0% (-32.7% to +32.7%)"
    assert cells[2]["minus"] == "one" and cells[2]["PSNR dB"].startswith("+1.00 (+") and cells[3]["PSNR dB"] == "∞"
    quality = next(section for section in report_sections(results()) if section.title == "Quality")
    assert quality.blocks[1].cells() == table.cells() and "no interval" in quality.note


def test_without_a_common_figure_there_is_no_table():
    alone = Results(["a"], [0], {}, [ModelResult("full", ModelFacts(), 1.0), ModelResult("one", ModelFacts(), 1.0)])
    assert differences_table(alone).rows == []
    assert len(next(s for s in report_sections(alone) if s.title == "Quality").blocks) == 1


def test_a_single_prompt_has_a_dash_for_its_interval():
    models = [ModelResult("full", ModelFacts(), 1.0)]
    models += [ModelResult(name, ModelFacts(), 1.0, {"ssim": [0.5]}) for name in ("one", "two")]
    (row,) = differences_table(Results(["a"], [0], {}, models)).cells()
    assert row == ["two", "one", "+0.0000 ±–"]
