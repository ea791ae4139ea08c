"""The paper's protocol, run dry on the shipped model; what is kept is of the run that asks for it, or refused."""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from diffusers import DiffusionPipeline

from ditquant.errors import DitQuantError
from ditquant.evaluation import shapes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def paper(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield import_module("paper")
    for name in ("paper", "paper_kept"):
        sys.modules.pop(name, None)


@pytest.fixture
def words(tmp_path):
    (tmp_path / "one.txt").write_text("\n".join(shapes.prompts(3, seed=0)))
    (tmp_path / "eight.txt").write_text("\n".join(shapes.prompts(2, seed=1, held_out=False)))
    return [
        *("pixart-shapes", "--set", f"coco={tmp_path / 'one.txt'}", "--calibration", str(tmp_path / "eight.txt")),
        *("--prompts", "2", "--steps", "2", "--methods", "rtn", "lrq", "--bits", "w4a8", "-o", str(tmp_path / "out")),
        *("--device", "cpu"),
    ]


def test_a_dry_run_and_going_on(paper, words, tmp_path, monkeypatch):
    paper.main(words)
    folder = tmp_path / "out" / "pixart-shapes"
    results = json.loads((folder / "coco-w4a8" / "results.json").read_text())
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
    refused = {"--steps": "5", "--seed": "7"}
    with pytest.raises(DitQuantError, match=r"of another run \(steps 2, now 5; seed 0, now 7\).*another --output"):
        paper.main([*words, *(word for pair in refused.items() for word in pair)])
    for changed, said in (
        (("--prompts", "1"), "calibration"),
        (("--dtype", "bfloat16"), "dtype float32, now bfloat16"),
        (("--set", f"coco={tmp_path / 'two.txt'}"), "prompts 2 of"),
    ):
        (tmp_path / "two.txt").write_text("\n".join(shapes.prompts(2, seed=5)))
        given = [word for word in words if changed[0] != "--set" or not word.startswith(("--set", "coco="))]
        with pytest.raises(DitQuantError, match=said):
            paper.main([*given, *changed])
    for name in ("digest_folder", "recipe_digest"):
        with monkeypatch.context() as other:
            other.setattr(paper, name, lambda _of: "other")
            with pytest.raises(DitQuantError, match=r"(weights|recipe) .*, now other"):
                paper.main(words)
    assert (folder / "tables.md").read_text() == tables


def test_a_killed_run_goes_on_from_its_quantized_models(paper, words, tmp_path, monkeypatch):
    def killed(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as run, pytest.raises(KeyboardInterrupt):
        run.setattr(paper, "compare", killed)
        paper.main(words)
    monkeypatch.setattr(paper.ditquant, "quantize", killed)
    paper.main(words)
    assert "lrq-w4a8" in (tmp_path / "out" / "pixart-shapes" / "tables.md").read_text()


def test_methods_are_added_and_those_asked_for_are_shown(paper, words, tmp_path, monkeypatch, capsys):
    paper.main([word for word in words if word != "lrq"])
    folder, asked, compare = tmp_path / "out" / "pixart-shapes", [], paper.compare

    def counted(reference, pipelines, *args, **options):
        asked.append(list(pipelines))
        return compare(reference, pipelines, *args, **options)

    monkeypatch.setattr(paper, "compare", counted)
    at = words.index("w4a8") + 1
    paper.main([*words[:at], "w4a4", *words[at:], "--methods", "qdit", "lrq"])
    assert asked == [["qdit-w4a8", "lrq-w4a8"], ["lrq-w4a4"]]
    assert "qdit has no recipe w4a4" in capsys.readouterr().err
    wide, narrow = (folder / "tables.md").read_text().split("## coco, W4A4")
    assert "qdit-w4a8 | qdit-w4a8" in wide and "lrq-w4a8" in wide and "rtn" not in wide
    assert "| qdit-w4a4 | no such recipe | – |" in narrow
    results = json.loads((folder / "coco-w4a8" / "results.json").read_text())
    assert [model["name"] for model in results["models"]] == ["reference", "rtn-w4a8", "qdit-w4a8", "lrq-w4a8"]
    paper.main(words)
    assert len(asked) == 2 and "rtn-w4a8" in (folder / "tables.md").read_text()


def test_results_of_unknown_making_are_refused(paper, words, tmp_path):
    (tmp_path / "out" / "pixart-shapes").mkdir(parents=True)
    (tmp_path / "out" / "pixart-shapes" / "coco-w4a8.json").write_text("{}")
    with pytest.raises(DitQuantError, match=r"does not say in run\.json what it was made of"):
        paper.main(words)


def test_an_error_is_one_line(paper, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["paper.py", *(word if word != "lrq" else "typo" for word in words)])
    with pytest.raises(SystemExit) as left:
        paper.command()
    said = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and len(said) == 1 and said[0].startswith("error: unknown method 'typo'")


def test_what_a_set_is_made_of_follows_its_networks_and_pictures(paper):
    import numpy as np
    from paper_kept import made_of_set

    from ditquant.evaluation.networks import Networks
    from ditquant.evaluation.networks.lpips import ALEX, Lpips

    network, black, white = Lpips(ALEX), np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    found = [made_of_set(["a"], Networks(real=real)) for real in ((), (black,), (white,), (black, white))]
    found += [made_of_set(prompts, Networks()) for prompts in (["b"], ["a", "b"])]
    found.append(made_of_set(["a"], Networks(lpips=network)))
    next(network.parameters()).data.flatten()[0] += 1
    found.append(made_of_set(["a"], Networks(lpips=network)))
    assert len({json.dumps(one) for one in found}) == len(found)
    assert made_of_set(["a"], Networks()) == found[0]


def test_weights_are_told_apart_by_every_file(paper, tmp_path):
    from paper_kept import digest_folder

    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "a.safetensors").write_bytes(b"1")
    first = digest_folder(tmp_path)
    (tmp_path / ".cache").write_text("a note")
    assert digest_folder(tmp_path) == first
    (tmp_path / "transformer" / "a.safetensors").write_bytes(b"2")
    assert digest_folder(tmp_path) != first


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"pixart-shapes": "pixart-omega"}, "unknown model 'pixart-omega'"),
        ({"2": "5"}, "holds 3 prompts, 5 are asked for"),
        ({"w4a8": "w9a9"}, "unknown bits 'w9a9'"),
        ({"lrq": "typo"}, "unknown method 'typo'.*smoothquant"),
        ({"rtn": "qdit", "lrq": "qdit-gptq", "w4a8": "w4a4"}, "none of qdit, qdit-gptq has a recipe w4a4"),
        ({"--device": "--set", "cpu": "SET"}, "'coco' is given twice"),
        ({"--device": "--real", "cpu": "REAL"}, "unknown set of --real 'mjhq'"),
        ({"EIGHT": "SET"}, "is in a set and calibrates"),
        ({"SET": "coco=nowhere.txt"}, "not NAME=PATH"),
    ],
)
def test_what_cannot_be_run(paper, words, changed, match, tmp_path):
    named = {"EIGHT": str(tmp_path / "eight.txt"), "SET": f"coco={tmp_path / 'one.txt'}", "REAL": f"mjhq={tmp_path}"}
    if changed == {"EIGHT": "SET"}:
        changed = {named["EIGHT"]: str(tmp_path / "one.txt")}
    given = {"REAL": named["REAL"], "SET": named["SET"]} if "--device" in changed else {}
    changed = {named.get(old, old): given.get(new, new) for old, new in changed.items()}
    with pytest.raises(DitQuantError, match=match):
        paper.main([changed.get(word, word) for word in words])
    assert not list(tmp_path.glob("out/*/*"))


def test_the_settings_of_the_paper(paper):
    assert paper.MODELS["pixart-sigma"].steps == 20 and paper.MODELS["pixart-sigma"].guidance == 4.5
    assert paper.MODELS["flux-schnell"].steps == 4 and paper.PROMPTS == 1024 and paper.CALIBRATION == 8
    assert all(paper.at(bits, paper.METHODS) for bits in paper.BITS)
