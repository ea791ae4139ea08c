"""Killed and started again: on at the block where it was, and the same bits at the end."""

import json
import signal
import subprocess
import sys

import pytest
import torch

import ditquant
from ditquant import engine
from ditquant.errors import DitQuantError
from ditquant.nn import QuantLinear
from ditquant.recipe import Recipe
from tests.tiny import PROMPTS, inputs, run, tiny, tiny_pixart_pipeline


class Killed(Exception):
    pass


@pytest.fixture
def quantized(monkeypatch):
    """Names of the layers that were quantized; `stop` makes the next but so many raise."""

    class Log(list):
        stop = None

    log, quantize_layer = Log(), engine.quantize_layer

    def spy(linear, layer, *rest):
        if log.stop is not None and len(log) == log.stop:
            raise Killed
        log.append(layer.name)
        return quantize_layer(linear, layer, *rest)

    monkeypatch.setattr("ditquant.engine.quantize_layer", spy)
    return log


def equal_states(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def interrupted(model, log, stop, **options):
    log.stop = stop
    with pytest.raises(Killed):
        ditquant.quantize(model, **options)
    log.stop = None
    assert not any(isinstance(module, QuantLinear) for module in getattr(model, "transformer", model).modules())
    made = list(log)
    log.clear()
    return made


@pytest.mark.parametrize(
    "name, blocks, recipe", [("pixart", 2, "lrq-w3a8"), ("flux", 4, "lrq-w3a8"), ("pixart", 2, "lrq-plus-w3a8")]
)
def test_every_interruption_ends_with_the_same_bits(name, blocks, recipe, quantized, tmp_path):
    """In the middle of every block, one after the other, with the recorded calls of the first run."""
    truth = tiny(name)
    plan = ditquant.quantize(truth, recipe, forward=run)
    counts = [sum(n.startswith(b) for n in quantized) for b in dict.fromkeys(_block(n) for n in quantized)]
    assert len(counts) == blocks
    order = list(quantized)
    quantized.clear()
    options = {"recipe": recipe, "work_dir": tmp_path / "work"}
    for i, count in enumerate(counts):
        forward = run if i == 0 else lambda model: pytest.fail("the calls are recorded")
        made = interrupted(tiny(name), quantized, count - 1, forward=forward, **options)
        assert made == order[sum(counts[:i]) :][: count - 1]
        if i < blocks - 1:  # let this block pass
            interrupted(tiny(name), quantized, count + 1, forward=forward, **options)
    model = tiny(name)
    assert ditquant.quantize(model, forward=run, **options).hash() == plan.hash()
    assert quantized == order[-counts[-1] :] and equal_states(model, truth)
    again = tiny(name)
    ditquant.quantize(again, forward=run, **options)
    assert equal_states(again, truth) and torch.equal(run(again), run(truth))


def _block(name):
    return ".".join(name.split(".")[:2]) + "."


def test_a_pipeline_goes_on_too(quantized, tmp_path):
    truth = tiny_pixart_pipeline()
    options = {"recipe": "lrq-w4a8", "prompts": PROMPTS[:2]}
    ditquant.quantize(truth, **options)
    quantized.clear()
    options["work_dir"] = tmp_path / "work"
    interrupted(tiny_pixart_pipeline(), quantized, 13, **options)
    pipeline = tiny_pixart_pipeline()
    ditquant.quantize(pipeline, **options)
    assert len(quantized) == 10 and equal_states(pipeline.transformer, truth.transformer)


@pytest.mark.parametrize("options", [{"forward": run}, {}])
def test_models_without_walkable_blocks_go_on_at_the_layer(options, quantized, tmp_path):
    truth = tiny("latte")
    ditquant.quantize(truth, "lrq-w4a8", **options)
    total = len(quantized)
    quantized.clear()
    options = options | {"work_dir": tmp_path / "work", "recipe": "lrq-w4a8"}
    interrupted(tiny("latte"), quantized, 5, **options)
    model = tiny("latte")
    ditquant.quantize(model, **options)
    assert len(quantized) == total - 5 and equal_states(model, truth)


def test_arguments_that_cannot_be_kept_are_recorded_again(quantized, tmp_path):
    class Settings(dict):
        """Of a kind that a file cannot hold."""

    def forward(model):
        model(**inputs(model), cross_attention_kwargs=Settings())

    truth = tiny("pixart")
    ditquant.quantize(truth, "lrq-w4a8", forward=run)
    quantized.clear()
    options = {"recipe": "lrq-w4a8", "work_dir": tmp_path / "work", "forward": forward}
    interrupted(tiny("pixart"), quantized, 13, **options)
    assert not (tmp_path / "work" / "recorded").exists()
    model = tiny("pixart")
    ditquant.quantize(model, **options)
    assert len(quantized) == 10 and equal_states(model, truth)


OTHERS = {
    "recipe": {"recipe": "lrq-w4a4"},
    "seed": {"seed": 1},
    "prompts": {"prompts": PROMPTS[1:3]},
    "max_calls": {"max_calls": 3},
}


@pytest.mark.parametrize("what", [*OTHERS, "weights", "model", "scheduler"])
def test_the_work_of_another_run_is_refused(what, quantized, tmp_path):
    options = {"recipe": "lrq-w4a8", "prompts": PROMPTS[:2], "work_dir": tmp_path / "work"}
    interrupted(tiny_pixart_pipeline(), quantized, 13, **options)
    seed, layers = int(what == "weights"), 3 if what == "model" else 2
    pipeline = tiny_pixart_pipeline(seed, num_layers=layers)
    if what == "scheduler":
        pipeline.scheduler.register_to_config(flow_shift=3.0)
    with pytest.raises(DitQuantError, match=rf"work of another run \(other .*{what}") as error:
        ditquant.quantize(pipeline, **options | OTHERS.get(what, {}))
    assert "\n" not in str(error.value) and quantized == []


def test_work_goes_on_when_only_thresholds_changed(quantized, tmp_path):
    options = {"prompts": PROMPTS[:2], "work_dir": tmp_path / "work"}
    interrupted(tiny_pixart_pipeline(), quantized, 13, recipe="rtn-w4a8", **options)
    recipe = Recipe.from_dict(Recipe.load("rtn-w4a8").to_dict() | {"thresholds": ["ssim>=0.8"]})
    plan = ditquant.quantize(tiny_pixart_pipeline(), recipe, **options)
    assert [str(threshold) for threshold in plan.thresholds] == ["ssim>=0.8"]


def test_a_folder_that_is_something_else_is_refused(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(DitQuantError, match="Choose another folder"):
        ditquant.quantize(tiny("pixart"), "lrq-w4a8", forward=run, work_dir=tmp_path)
    (tmp_path / "file.txt").rename(tmp_path / "run.json")
    with pytest.raises(DitQuantError, match="cannot be read"):
        ditquant.quantize(tiny("pixart"), "lrq-w4a8", forward=run, work_dir=tmp_path)


KILLED = """
import os, signal, sys
import ditquant
from ditquant import engine
from tests.tiny import run, tiny
quantize_layer, count = engine.quantize_layer, 0
def spy(*args):
    global count
    count += 1
    if count == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return quantize_layer(*args)
engine.quantize_layer = spy
ditquant.quantize(tiny("pixart"), "lrq-w4a8", forward=run, work_dir=sys.argv[1])
"""


def test_a_process_that_was_killed_goes_on_in_another(quantized, tmp_path):
    work = tmp_path / "work"
    process = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, str(work)], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert json.loads((work / "run.json").read_text()) and (work / "transformer_blocks.0").is_dir()
    truth, model = tiny("pixart"), tiny("pixart")
    ditquant.quantize(truth, "lrq-w4a8", forward=run)
    quantized.clear()
    ditquant.quantize(model, "lrq-w4a8", forward=run, work_dir=work)
    assert len(quantized) == 10 and equal_states(model, truth)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "stop, damage, again",
    [
        (33, "transformer_blocks.0/layers.safetensors", "transformer_blocks.0"),
        (33, "transformer_blocks.2/layers.safetensors", "transformer_blocks.2"),
        (33, "transformer_blocks.0/plans.json", "transformer_blocks.0"),
        (33, "transformer_blocks.2/carried/0.safetensors", None),
        (33, "recorded/calls.json", None),
        (40, "transformer_blocks.3/layers.safetensors", "transformer_blocks.3"),
    ],
)
def test_a_damaged_piece_of_work_is_computed_again(stop, damage, again, quantized, tmp_path, capsys):
    """And nothing else is, with the same bits."""
    work = tmp_path / "work"
    truth = tiny("pixart", num_layers=4)
    ditquant.quantize(truth, "lrq-w4a8", forward=run)
    quantized.clear()
    if stop < 40:
        interrupted(tiny("pixart", num_layers=4), quantized, stop, recipe="lrq-w4a8", forward=run, work_dir=work)
    else:
        ditquant.quantize(tiny("pixart", num_layers=4), "lrq-w4a8", forward=run, work_dir=work)
        quantized.clear()
    cut(work / damage)
    capsys.readouterr()
    model = tiny("pixart", num_layers=4)
    ditquant.quantize(model, "lrq-w4a8", forward=run, work_dir=work)
    assert capsys.readouterr().err.count("is damaged and computed again") == 1
    new = {"transformer_blocks.3"} if stop < 40 else set()
    assert {_block(name)[:-1] for name in quantized} == new | ({again} if again else set())
    assert len(quantized) == 10 * len(new | ({again} if again else set())) and equal_states(model, truth)


def test_damaged_tensors_of_recorded_calls_are_recorded_again(quantized, tmp_path, capsys):
    work = tmp_path / "work"
    interrupted(tiny("pixart"), quantized, 13, recipe="lrq-w4a8", forward=run, work_dir=work)
    cut(sorted((work / "recorded").glob("*.safetensors"))[-1])
    truth, model = tiny("pixart"), tiny("pixart")
    ditquant.quantize(truth, "lrq-w4a8", forward=run)
    quantized.clear()
    ditquant.quantize(model, "lrq-w4a8", forward=run, work_dir=work)
    assert "recorded is damaged" in capsys.readouterr().err
    assert len(quantized) == 10 and equal_states(model, truth)


def test_a_damaged_layer_of_a_model_in_one_pass_is_computed_again(quantized, tmp_path, capsys):
    work = tmp_path / "work"
    truth, model = tiny("latte"), tiny("latte")
    ditquant.quantize(truth, "lrq-w4a8", forward=run, work_dir=work)
    name = quantized[3]
    quantized.clear()
    cut(work / name / "layers.safetensors")
    ditquant.quantize(model, "lrq-w4a8", forward=run, work_dir=work)
    assert quantized == [name] and equal_states(model, truth)
    assert f"{name} is damaged and computed again" in capsys.readouterr().err
