"""Whatever is wrong in a results.json is said in one line that names the place; what is read can be joined."""

import copy
import json

import pytest

from ditquant.errors import DitQuantError
from ditquant.evaluation import ModelFacts, ModelResult, Results, results_table, write_comparison
from ditquant.evaluation.conditions import Conditions
from ditquant.evaluation.inventory import Kept
from ditquant.evaluation.layers import LayerResult
from ditquant.evaluation.verdict import verdict


def example(name: str = "w4") -> Results:
    values = {"step_sqnr_db": [20.0, 21.0], "ssim": [0.5, 0.6, 0.7], "caption_accuracy": [1.0, 0.0, 1.0]}
    other = ModelResult(
        name,
        ModelFacts("lrq", "0123456789abcdef", 4.1, 100, ("ssim>=0.5",)),
        9.0,
        values,
        [30.0, 20.0],
        [LayerResult("a.b", "4-bit", 9, 20.0)],
        [Kept("Linear", "outside", 6, 12, ("p",))],
        {"kid": 0.5},
    )
    full = ModelResult("full", ModelFacts(file_bytes=400), 12.0, {"caption_accuracy": [1.0, 1.0, 1.0]})
    conditions = Conditions("float32", "cpu", "0123456789abcdef")
    return Results(["a", "b", "c"], [0, 1, 2], {"steps": 3}, [full, other], ["left out"], conditions=conditions)


def load(tmp_path, data) -> Results:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(data))
    return Results.load(path)


WRONG = {
    "models[1].values.ssim[0] must be a number, got 'abc'": lambda d: d["models"][1]["values"]["ssim"].insert(0, "abc"),
    "models[1].values.ssim must be a list of 3, one number for each prompt, got [0.5]": lambda d: d["models"][1][
        "values"
    ].update(ssim=[0.5]),
    "models[1].values.ssim must be a list of 3": lambda d: d["models"][1]["values"].update(ssim=[]),
    "models[1].values.step_sqnr_db must be a list of 3": lambda d: d["models"][1]["values"].update(step_sqnr_db=[]),
    "models must be a list of models with different names": lambda d: d.update(models=[]),
    "models must be a list of models": lambda d: d["models"].append(d["models"][1]),
    "prompts must be a list, got 3": lambda d: d.update(prompts=3),
    "seeds must be a list of 3, one for each prompt": lambda d: d.update(seeds=[1]),
    "sampling must be a mapping, got [1]": lambda d: d.update(sampling=[1]),
    "models[0] must be a mapping with 'seconds'": lambda d: d["models"][0].pop("seconds"),
    "models[1].thresholds[0] must be a threshold": lambda d: d["models"][1].update(thresholds=["ssim"]),
    "dtype must be text, got 4": lambda d: d.update(dtype=4),
}


@pytest.mark.parametrize("message", WRONG)
def test_the_line_names_the_place(message, tmp_path):
    data = example().to_dict()
    WRONG[message](data)
    with pytest.raises(DitQuantError) as error:
        load(tmp_path, data)
    assert message in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def places(data, path=()):
    """Yield the path to every value, those of summaries left out: they are not read."""
    if path:
        yield path
    found = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in found:
        if key != "summary":
            yield from places(value, (*path, key))


LIES = (None, [], [[]], {}, "x", "\ud800", "", 3, -1, 10**400, 1e308, float("nan"), float("inf"), True, "delete")


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: repr(lie)[:12])
def test_no_value_of_a_file_brings_more_than_one_line(lie, tmp_path):
    truth = json.loads(json.dumps(example().to_dict()))
    refused = 0
    for path in places(truth):
        data = copy.deepcopy(truth)
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        if lie == "delete":
            del inner[path[-1]]
        else:
            inner[path[-1]] = lie
        try:
            both = example("mine").joined([load(tmp_path, data)])
            results_table(both)
            verdict(both)
            write_comparison(both, tmp_path / "out", overwrite=True)
        except DitQuantError as error:
            assert "\n" not in str(error), path
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema_version": ' + "1" * 5000 + "}", '{"schema_version": NaN}'])
def test_what_the_reader_of_json_stumbles_over(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DitQuantError, match=r"results\.json is not a results file"):
        Results.load(tmp_path / "results.json")
