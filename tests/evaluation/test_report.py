"""The page of a comparison: its sections are those that something is known for, and say what was kept and why."""

import numpy as np

from ditquant.evaluation import ModelFacts, ModelResult, Results
from ditquant.evaluation.inventory import Kept
from ditquant.evaluation.layers import LayerResult
from ditquant.evaluation.report import gallery_of, report_sections


def results(**more) -> Results:
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    full = ModelResult("full", ModelFacts(file_bytes=400), 3.0, images=images)
    return Results(
        ["a", "b"], [0, 1], {}, [full, ModelResult("w4", ModelFacts(file_bytes=100), 2.0, images=images, **more)]
    )


def shown(found: Results) -> dict[str, list]:
    return {section.title: section.blocks for section in report_sections(found) if section.blocks}


def test_sections_without_anything_are_left_out():
    assert list(shown(results())) == ["Quality", "Size and speed", "Pictures"]
    assert "Error by step" in shown(results(steps=[1.0, 2.0])) and "Error by step" not in shown(results(steps=[np.inf]))


def test_size_and_speed_beside_the_reference():
    (table,) = shown(results())["Size and speed"]
    row = dict(zip([column.key for column in table.columns], table.cells()[1], strict=True))
    assert (row["size_share"], row["prompt_seconds"], row["speed"]) == ("25%", "1.00", "1.50")


def test_layers_are_sorted_by_error_and_drawn_in_order():
    layers = [LayerResult(name, "4-bit", 10, value) for name, value in (("x", 30.0), ("y", None), ("z", 10.0))]
    chart, table = shown(results(layers=layers))["Error by layer"]
    assert list(chart.names) == ["x", "y", "z"] and chart.series["w4"] == [30.0, None, 10.0]
    assert table.cells() == [["z", "10.0"], ["x", "30.0"], ["y", "–"]]


def test_what_was_quantized_and_what_was_not():
    layers = [LayerResult(str(i), "4-bit" if i else "8-bit", 10, 1.0) for i in range(3)]
    kept = [Kept("Linear", "outside", 4, 7, ("p", "q", "r")), Kept("Model", "not a linear layer", 1, 5, ())]
    (table,) = shown(results(layers=layers, kept=kept))["What was quantized"]
    assert table.cells() == [
        ["8-bit", "1", "10", "–", "–"],
        ["4-bit", "2", "20", "–", "–"],
        ["Linear in floating point", "4", "7", "outside", "p, q, r, ..."],
        ["Model in floating point", "1", "5", "not a linear layer", ""],
    ]


def test_prompts_are_sorted_by_what_all_of_them_have():
    values = {"ssim": [0.1], "latent_sqnr_db": [2.0, 1.0], "caption_accuracy": [1.0, 0.0]}
    gallery = gallery_of(results(values=values))
    assert [figure.key for figure in gallery.figures] == ["latent_sqnr_db", "caption_accuracy", "ssim"]
    assert gallery.by_damage() == [1, 0]
