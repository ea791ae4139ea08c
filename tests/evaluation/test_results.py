"""results.json is strict JSON that comes back as it was."""

import json
import re
from dataclasses import replace

import pytest

from ditquant.errors import DitQuantError
from ditquant.evaluation import ModelFacts, ModelResult, Results, results_table
from ditquant.evaluation.conditions import Conditions
from ditquant.evaluation.verdict import verdict
from ditquant.threshold import Threshold

INF = float("inf")


def example() -> Results:
    return Results(
        ["a <b>", "ü", "c"],
        [4, 5, 6],
        {"steps": 2, "guidance": None},
        [
            ModelResult("full", ModelFacts(file_bytes=4_000_000), 2.0, {"caption_accuracy": [1.0, 1.0, 1.0]}),
            ModelResult(
                "w3",
                ModelFacts("lrq-w3a8", "0123456789abcdef", 3.125, 1_000_000, ("ssim>=0.5",)),
                1.5,
                {
                    "latent_sqnr_db": [10.0, INF, INF],
                    "psnr_db": [20.0, 25.0, 90.0],
                    "ssim": [0.5, 0.625, 0.75],
                    "caption_accuracy": [1.0, 0.0, 0.0],
                },
            ),
        ],
        verdict=["w3: go"],
        conditions=Conditions("float32", "cpu", "0011223344556677"),
    )


def test_save_and_load(tmp_path):
    results = example()
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    data = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert data["schema_version"] == 3 and set(data["versions"]) == {
        "python",
        "ditquant",
        "torch",
        "diffusers",
        "transformers",
    }
    assert data["models"][1]["recipe"] == "lrq-w3a8" and data["models"][1]["plan_hash"] == "0123456789abcdef"
    assert data["models"][1]["thresholds"] == ["ssim>=0.5"] and data["verdict"] == ["w3: go"]
    assert data["models"][1]["summary"]["psnr_db"] == {"median": 25.0, "mean": 45.0, "low": 20.0, "high": 90.0}
    assert data["models"][1]["values"]["latent_sqnr_db"] == [10.0, "inf", "inf"]
    with pytest.raises(DitQuantError, match="--overwrite"):
        results.save(tmp_path / "results.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": "x"}', "\x00"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DitQuantError, match="is not a results file"):
        Results.load(path)


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(example().to_dict() | {"schema_version": 4}))
    with pytest.raises(DitQuantError, match="schema version 4, this ditquant reads 3"):
        Results.load(path)
    with pytest.raises(DitQuantError, match="is not a results file"):
        Results.load(tmp_path / "missing.json")


def test_the_table_shows_medians_and_the_share_of_right_captions():
    table = results_table(example())
    cells = dict(zip([c.key for c in table.columns], table.cells()[1], strict=True))
    assert cells == {
        "name": "w3",
        "recipe": "lrq-w3a8",
        "bits_per_weight": "3.12",
        "file_mb": "1.00",
        "latent_sqnr_db": "∞",
        "psnr_db": "25.00 ±35.00",
        "ssim": "0.6250 ±0.1250",
        "caption_accuracy": "33.3% (6.1% to 79.2%)",
        "seconds": "1.5",
    }
    assert table.cells()[0][1:3] == ["–", "–"]
    plain = Results(["x"], [0], {}, [ModelResult("full", ModelFacts(), 1.0)])
    assert [c.key for c in results_table(plain).columns] == ["name", "seconds"]


def test_an_older_schema_is_read(tmp_path):
    data = example().to_dict() | {"schema_version": 1}
    for key in ("notes", "verdict", "dtype", "device", "reference_digest"):
        del data[key]
    for model in data["models"]:
        for key in ("steps", "layers", "kept", "scores", "thresholds"):
            del model[key]
    (tmp_path / "results.json").write_text(json.dumps(data))
    results = Results.load(tmp_path / "results.json")
    expected = example().models
    expected[1].facts = replace(expected[1].facts, thresholds=())
    assert results.conditions == Conditions()
    assert results.schema_version == 1 and results.models == expected and results.notes == results.verdict == []


def test_scores_of_sets_are_kept_and_shown(tmp_path):
    results = example()
    results.models[1].scores = {"fid": 12.346, "kid_real": INF}
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    table = results_table(results)
    assert dict(zip([c.key for c in table.columns], table.cells()[1], strict=True))["fid"] == "12.35"
    assert verdict(results, [Threshold("fid", "<=", 12.0)]) == (False, ["w3: no-go, fid 12.35 is not <= 12"])


def test_reports_of_equal_prompts_are_joined():
    one, other = example(), example()
    other.models[1].name, other.notes, other.sampling = (
        "w4",
        ["left out"],
        {"steps": 2, "guidance": None, "batch_size": 9},
    )
    both = one.joined([other])
    assert [model.name for model in both.models] == ["full", "w3", "w4"] and both.notes == ["left out"]
    assert [model.name for model in one.models] == ["full", "w3"]


UNEQUAL = {
    "unequal sets of prompts (3 and 3; the first difference is prompt 1)": {"prompts": ["a <b>", "u", "c"]},
    "unequal sets of prompts (3 and 4; one has more)": {"prompts": ["a <b>", "ü", "c", "d"]},
    "unequal seeds": {"seeds": [4, 5, 7]},
    "unequal settings": {"sampling": {"steps": 3, "guidance": None}},
    "unequal dtypes: float32 and bfloat16. Paint both with the same --dtype": {
        "conditions": Conditions("bfloat16", "cpu", "0011223344556677")
    },
    "the weights of 'full' have the digest 0011223344556677, those of 'full' 8899": {
        "conditions": Conditions("float32", "cpu", "8899"),
        "models": [ModelResult("full", ModelFacts(), 1.0)],
    },
    "compare with different references: 'full' and 'another'": {
        "conditions": Conditions("float32", "cpu"),
        "models": [ModelResult("another", ModelFacts(), 1.0)],
    },
    "step_sqnr_db of unequal numbers of prompts: 2 and 3": {
        "models": [
            ModelResult("full", ModelFacts(), 1.0),
            ModelResult("a", ModelFacts(), 1.0, {"step_sqnr_db": [1.0] * 2}),
            ModelResult("b", ModelFacts(), 1.0, {"step_sqnr_db": [1.0] * 3}),
        ]
    },
    "'w3' is in both reports": {},
}


@pytest.mark.parametrize("message", UNEQUAL)
def test_unequal_reports_are_refused(message):
    other = example()
    for name, value in UNEQUAL[message].items():
        setattr(other, name, value)
    with pytest.raises(DitQuantError, match=re.escape(message)):
        example().joined([other])


def test_equal_references_may_have_two_names_and_devices_are_noted():
    other = example()
    other.models = [ModelResult("./full", ModelFacts(), 1.0), ModelResult("w4", ModelFacts(), 1.0)]
    other.conditions = replace(other.conditions, device="cuda")
    both = example().joined([other])
    assert both.notes == ["w4 ran on cuda, the other models on cpu: do not compare seconds."]
    assert both.conditions == example().conditions and both.verdict == []
    other.models[0].name, other.conditions = "full", Conditions()
    (note,) = example().joined([other]).notes
    assert note.startswith("the report of w4 is of an older version and does not say its dtype")
