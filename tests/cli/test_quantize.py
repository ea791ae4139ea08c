"""`ditquant quantize`: a folder that diffusers loads, deterministic, with what was not quantized left as it was."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

import ditquant
from ditquant import engine
from ditquant.nn import QuantLinear
from ditquant.specs import QuantPlan
from tests.cli.command import contents, refused, succeed, write_recipe
from tests.cli.command import ditquant as command
from tests.tiny import PROMPTS, paint

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def loaded(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stored_plan(folder) -> QuantPlan:
    config = json.loads((folder / "config.json").read_text())
    return QuantPlan.from_dict(config["quantization_config"]["plan"])


def test_what_is_saved_is_what_python_makes(model, quantized, prompts):
    mine = loaded(model)
    plan = ditquant.quantize(mine, "lrq-w4a8", prompts=PROMPTS[:2])
    theirs = loaded(quantized)
    assert stored_plan(quantized / "transformer").hash() == plan.hash()
    assert {t.kind for layer in plan.layers.values() for t in layer.transforms} >= {"smooth"}
    assert torch.equal(torch.as_tensor(paint(mine)), torch.as_tensor(paint(theirs)))


def test_what_is_not_quantized_keeps_its_bits(model, quantized):
    before, after = load_file(model / WEIGHTS), load_file(quantized / WEIGHTS)
    kept = {name for name in set(before) & set(after) if after[name].numel()}  # an empty one marks a quantized layer
    assert {"transformer_blocks.0.scale_shift_table", "proj_out.weight"} <= kept
    for name in kept:
        assert after[name].dtype == before[name].dtype and torch.equal(after[name], before[name]), name
    assert {before[name].dtype for name in kept} == {torch.bfloat16, torch.float32}
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        before, after = load_file(model / part), load_file(quantized / part)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_equal_commands_write_equal_files(model, quantized, prompts, tmp_path):
    arguments = ("quantize", model, "--recipe", "lrq-w4a8", "--prompts", prompts)
    succeed(*arguments, "-o", tmp_path / "again")
    succeed(*arguments, "-o", tmp_path / "other", "--seed", 3)
    first, again, other = (load_file(f / WEIGHTS) for f in (quantized, tmp_path / "again", tmp_path / "other"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    one, two = contents(quantized), contents(tmp_path / "again")
    assert one.keys() == two.keys() and {name for name in one if one[name] != two[name]} <= {WEIGHTS}  # its header


def test_it_says_what_was_made_and_nothing_else(model, tmp_path):
    run = command("quantize", model, "--recipe", "rtn-w8a8", "-o", tmp_path / "out")
    layers = len(stored_plan(tmp_path / "out" / "transformer").layers)
    first, last = run.out.splitlines()
    assert first.startswith(f"transformer: {layers} layers with rtn-w8a8, ") and " bits a weight all-in, " in first
    assert last.startswith(f"saved to {tmp_path / 'out'} (plan ")
    assert run.err == ""


def test_a_single_component_is_quantized_data_free(model, tmp_path):
    succeed("quantize", model / "transformer", "--recipe", "rtn-w4a8", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists() and not (tmp_path / "out" / "model_index.json").exists()
    plan = stored_plan(tmp_path / "out")
    assert plan.recipe == "rtn-w4a8" and len(plan.layers) == 20


def test_a_recipe_of_the_users(model, tmp_path):
    recipe = write_recipe(tmp_path / "my recipe.yaml", target="*.ff.net.2", weight={"bits": 5, "group_size": 16})
    succeed("quantize", model, "--recipe", recipe, "-o", tmp_path / "out")
    plan = stored_plan(tmp_path / "out" / "transformer")
    assert list(plan.layers) == [f"transformer_blocks.{i}.ff.net.2" for i in range(2)]
    assert {layer.weight.bits for layer in plan.layers.values()} == {5} and plan.recipe == "mine"


def test_a_shipped_model_is_found_by_its_name(tmp_path):
    recipe = write_recipe(tmp_path / "one.yaml", target="transformer_blocks.0.attn1.to_q")
    out = succeed("quantize", "pixart-shapes", "--recipe", recipe, "-o", tmp_path / "out")
    assert "transformer: 1 layers with mine" in out
    assert any(isinstance(m, QuantLinear) for m in loaded(tmp_path / "out").transformer.modules())


def test_overwriting_replaces_the_whole_folder(model, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    succeed("quantize", model, "--recipe", "rtn-w4a8", "-o", target, "--overwrite")
    assert not (target / "old.txt").exists() and (target / "model_index.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_as_output_stays_a_link(model, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    succeed("quantize", model, "--recipe", "rtn-w4a8", "-o", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "model_index.json").exists()


def test_long_work_shows_how_far_it_is(model, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("ditquant.progress.DELAY_S", 0)
    run = command("quantize", model, "--prompts", prompts, "-o", tmp_path / "out")
    assert "calibrating: 100%" in run.err and "2/2" in run.err
    assert "quantizing: 100%" in run.err and "20/20" in run.err
    assert "Loading" not in run.err and "Writing" not in run.err


def test_a_work_folder_goes_on_after_an_interruption(model, quantized, prompts, tmp_path, monkeypatch):
    quantize_layer, made = engine.quantize_layer, []

    def interrupt(*arguments):
        made.append(arguments[1].name)
        if len(made) == 13:
            raise KeyboardInterrupt
        return quantize_layer(*arguments)

    monkeypatch.setattr("ditquant.engine.quantize_layer", interrupt)
    work, target = tmp_path / "work", tmp_path / "out"
    words = ("quantize", model, "--recipe", "lrq-w4a8", "--prompts", prompts, "-o", target, "--work-dir", work)
    run = command(*words)
    assert run.code == 130 and work.is_dir() and not target.exists()
    refused(command(*words, "--seed", 5), f"{work} holds the work of another run (other seed)")
    made.clear()
    made.extend(["done"] * 13)  # past the interruption
    succeed(*words)
    assert len(made) == 13 + 10 and not work.exists()
    once, twice = load_file(quantized / WEIGHTS), load_file(target / WEIGHTS)
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)


def test_a_work_folder_that_is_something_else_is_refused_before_anything_is_loaded(model, tmp_path, monkeypatch):
    monkeypatch.setattr("ditquant.sources.load", lambda *_: pytest.fail("was loaded"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    words = ("quantize", model, "-o", tmp_path / "out", "--work-dir")
    refused(command(*words, tmp_path / "full"), "holds something else")
    refused(command(*words, tmp_path / "full" / "file"), "is a file")


SLOW_SAVE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from diffusers import ConfigMixin, SchedulerMixin
from diffusers import DPMSolverMultistepScheduler as Scheduler
save = Scheduler.save_pretrained
def slow(*args, **kwargs):
    save(*args, **kwargs)
    print("half", flush=True)
    time.sleep(60)
Scheduler.save_pretrained = slow
from ditquant.cli import main
main()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_ends_while_it_saves_leaves_no_checkpoint(model, tmp_path, end):
    target = tmp_path / "out"
    words = ["quantize", str(model), "--recipe", "rtn-w4a8", "-o", str(target)]
    run = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SLOW_SAVE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with run:
        assert run.stdout.readline() == "half\n", run.stderr.read()
        (half,) = tmp_path.iterdir()
        assert half.name.startswith(".out.part-") and list(half.iterdir())
        run.send_signal(end)
        errors = run.stderr.read()
    assert not target.exists()
    if end == signal.SIGINT:
        assert run.returncode == 130 and errors == "error: interrupted, nothing was saved.\n"
        assert list(tmp_path.iterdir()) == []
    else:
        assert run.returncode == -signal.SIGKILL and list(tmp_path.iterdir()) == [half]
        succeed(*words)
        assert list(tmp_path.iterdir()) == [target] and (target / "model_index.json").exists()


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
def test_a_folder_with_one_variant_only(model, prompts, tmp_path, shards):
    loaded(model).save_pretrained(tmp_path / "fp16", variant="fp16", max_shard_size=shards)
    assert not list((tmp_path / "fp16").rglob("*model.safetensors"))
    made = [tmp_path / "plain-w4", tmp_path / "variant-w4"]
    for folder, out in zip((model, tmp_path / "fp16"), made, strict=True):
        succeed("quantize", folder, "--recipe", "lrq-w4a8", "--prompts", prompts, "-o", out)
    plans = {stored_plan(folder / "transformer").hash() for folder in made}
    assert len(plans) == 1
