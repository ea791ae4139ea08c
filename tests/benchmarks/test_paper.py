"""The paper's protocol, run dry on the shipped model."""

import json

import pytest
from diffusers import DiffusionPipeline

from benchmarks import paper
from ditquant.errors import DitQuantError
from ditquant.evaluation import shapes


@pytest.fixture
def words(tmp_path):
    (tmp_path / "one.txt").write_text("\n".join(shapes.prompts(3, seed=0)))
    (tmp_path / "eight.txt").write_text("\n".join(shapes.prompts(2, seed=1, held_out=False)))
    return [
        *("pixart-shapes", "--set", f"coco={tmp_path / 'one.txt'}", "--calibration", str(tmp_path / "eight.txt")),
        *("--prompts", "2", "--steps", "2", "--methods", "rtn", "lrq", "--bits", "w4a8", "-o", str(tmp_path / "out")),
        *("--device", "cpu"),
    ]


def test_a_dry_run_and_going_on(words, tmp_path, monkeypatch):
    paper.main(words)
    folder = tmp_path / "out" / "pixart-shapes"
    results = json.loads((folder / "coco-w4a8.json").read_text())
    assert results["prompts"] == shapes.prompts(3, seed=0)[:2]
    assert results["sampling"]["steps"] == 2 and results["sampling"]["guidance"] == 4.5
    assert [model["name"] for model in results["models"]] == ["reference", "rtn-w4a8", "lrq-w4a8"]
    plan = DiffusionPipeline.from_pretrained(folder / "models" / "lrq-w4a8").transformer.config["quantization_config"]
    assert plan.plan.recipe == "lrq-w4a8" and len(plan.plan.calibration) == 2
    tables = (folder / "tables.md").read_text()
    assert "## coco, W4A8" in tables and "lrq-w4a8" in tables
    monkeypatch.setattr(paper, "compare", None)
    paper.main(words)
    assert (folder / "tables.md").read_text() == tables


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"pixart-shapes": "pixart-omega"}, "unknown model 'pixart-omega'"),
        ({"2": "5"}, "holds 3 prompts, 5 are asked for"),
        ({"w4a8": "w9a9"}, "none of rtn, lrq has a recipe w9a9"),
        ({"EIGHT": "SET"}, "is in a set and calibrates"),
        ({"SET": "coco=nowhere.txt"}, "not NAME=PATH"),
    ],
)
def test_what_cannot_be_run(words, changed, match, tmp_path):
    named = {"EIGHT": str(tmp_path / "eight.txt"), "SET": f"coco={tmp_path / 'one.txt'}"}
    if changed == {"EIGHT": "SET"}:
        changed = {named["EIGHT"]: str(tmp_path / "one.txt")}
    changed = {named.get(old, old): new for old, new in changed.items()}
    with pytest.raises(DitQuantError, match=match):
        paper.main([changed.get(word, word) for word in words])
    assert not list(tmp_path.glob("out/*/*"))


def test_the_settings_of_the_paper():
    assert paper.MODELS["pixart-sigma"].steps == 20 and paper.MODELS["pixart-sigma"].guidance == 4.5
    assert paper.MODELS["flux-schnell"].steps == 4 and paper.PROMPTS == 1024 and paper.CALIBRATION == 8
    assert all(paper.at(bits, paper.METHODS) for bits in paper.BITS)
