"""`ditquant inspect`, `recipes`, `env` and the help: what they must say, and that they change nothing."""

import json
from functools import partial

import pytest
import torch

from ditquant import sources
from ditquant.calibration import run_prompts
from ditquant.evaluation import doctor
from ditquant.models import find_linears
from ditquant.recipe import list_recipes
from ditquant.skeleton import skeleton
from tests.cli.command import contents, ditquant, succeed, write_recipe
from tests.tiny import PROMPTS

ROTATIONS = ("hadamard", "dual")


def rows(out: str, word: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if line.split()[:1] == [word]]


def test_what_would_be_quantized_and_what_not(model):
    before = contents(model)
    run = ditquant("inspect", model)
    assert run.code == 0 and run.err == ""
    assert "transformer: PixArtTransformer2DModel, 0.1 million parameters, family pixart" in run.out
    assert "20 linear layers can be quantized, 62.3 % of the parameters" in run.out
    assert rows(run.out, "ffn_up") == [["ffn_up", "2", "8,192"]]
    assert rows(run.out, "BasicTransformerBlock")[0][:3] == ["BasicTransformerBlock", "2", "384"]
    (linear,) = rows(run.out, "Linear")
    assert linear[:2] == ["Linear", "6"] and "outside the transformer blocks" in run.out and "proj_out" in run.out
    assert contents(model) == before


def test_every_parameter_with_two_dimensions_is_counted_once(model):
    out = succeed("inspect", model)
    part = skeleton(json.loads((model / "transformer" / "config.json").read_text()), "x")
    numbers = [int(w[2].replace(",", "")) for line in out.splitlines() if len(w := line.split()) > 2 and _count(w)]
    assert sum(numbers) == sum(p.numel() for p in part.parameters() if p.ndim >= 2)


def _count(words: list[str]) -> bool:
    return words[1].isdigit() and words[2].replace(",", "").isdigit() and "-" not in words[0]


def test_sizes_of_all_recipes_and_of_one(model, quantized, tmp_path):
    out = succeed("inspect", model)
    assert rows(out, "16")[0][2:] == ["16.00", "0.1", "100", "%"]
    shown = set()
    for line in out.splitlines():
        first, *endings = line.strip().split("  ")[0].split(", ")
        shown |= {first, *(first.rpartition("a")[0] + ending for ending in endings)}
    assert set(list_recipes()) <= shown
    one = succeed("inspect", model, "--recipe", "lrq-w4a8")
    assert len(rows(one, "lrq-w4a8")) == 1 and "rtn-" not in one
    recipe = write_recipe(tmp_path / "mine.yaml", target="role:ffn_*")
    assert rows(succeed("inspect", model, "--recipe", recipe), "mine")[0][1] == "4"


def test_layers_are_listed(model, tmp_path):
    out = succeed("inspect", model, "--layers")
    layers = find_linears(skeleton(sources.find(str(model)).transformers()["transformer"], "x")).layers
    for layer in layers:
        assert rows(out, layer.name) == [[layer.name, layer.role, str(layer.in_features), str(layer.out_features)]]
    recipe = write_recipe(tmp_path / "mine.yaml", target="role:ffn_up", activation={"bits": 6})
    out = succeed("inspect", model, "--layers", "--recipe", recipe)
    assert "4-bit affine weights, 6-bit activations" in out and out.count("stays in floating point") == 18


@pytest.mark.parametrize("part", ["", "transformer"])
def test_a_quantized_model_shows_what_it_holds(quantized, part):
    weights = quantized / "transformer" / "diffusion_pytorch_model.safetensors"
    out = succeed("inspect", quantized / part)
    assert "quantized with lrq-w4a8 (plan " in out
    assert "4-bit twin_log weights, 8-bit activations, smooth" in out
    assert f"{weights.stat().st_size / 1e6:.1f} MB on disk" in out
    every = succeed("inspect", quantized / part, "--layers")
    assert len(rows(every, "transformer_blocks.1.ff.net.2")) == 1


def test_bits_all_in_are_those_that_quantize_said(model, tmp_path):
    said = succeed("quantize", model, "--recipe", "rtn-w3a8", "-o", tmp_path / "out")
    bits = said.partition(" bits a weight")[0].split()[-1]
    assert f"{bits} bits a weight all-in" in succeed("inspect", tmp_path / "out")


def test_recipes_lists_all():
    out = succeed("recipes")
    assert set(list_recipes()) <= set(out.split())


def test_env_says_whether_the_cpu_kernels_are_used(monkeypatch):
    monkeypatch.setenv("DITQUANT_CPU_KERNELS", "0")
    out = succeed("env")
    for name in ("kernels", "attention"):
        assert f"{name:16} torch: DITQUANT_CPU_KERNELS is 0" in out


def test_env_names_versions():
    out = succeed("env")
    for word in ("python", "ditquant", "torch", "diffusers", "transformers", "cpu", "cuda"):
        assert len(rows(out, word)) == 1 or word == "cuda", word


def test_layers_on_prompts(model, prompts, tmp_path):
    out = succeed("inspect", model, "--recipe", "lrq-w4a8", "--prompts", prompts, "-o", tmp_path / "doctor")
    table = [words for line in out.splitlines() if (words := line.split()) and words[-1] in ROTATIONS]
    pipeline = sources.load_pipeline(str(model), torch.float32)
    watched = {row[0]: pipeline.transformer.get_submodule(row[0]) for row in table}
    sums = {name: [0.0, 0] for name in watched}
    for name, module in watched.items():
        module.register_forward_pre_hook(partial(add_squares, sums[name]))
    run_prompts(pipeline, list(PROMPTS[:2]))
    assert len(table) == 20
    for name, metric, *_, by_metric, _ in table:
        exact = (sums[name][0] / sums[name][1]) ** 0.5
        assert abs(float(metric) - exact) < 0.006
        assert abs(exact - 1) < 1e-4 or by_metric == ROTATIONS[exact >= 1]
    salient = sum(row[-2] == ROTATIONS[1] for row in table)
    assert f"dual rotation: {salient} of 20 layers by J" in out
    data = json.loads((tmp_path / "doctor" / "inspect.json").read_text())
    assert [one["name"] for one in data["layers"]] == list(watched)
    page = (tmp_path / "doctor" / "report.html").read_text()
    assert f"page in {tmp_path / 'doctor' / 'report.html'}" in out and "transformer_blocks.1.ff.net.2" in page


def add_squares(sums: list, _module, args) -> None:
    sums[0] += float(args[0].double().square().sum())
    sums[1] += args[0].numel()


def test_steps_and_sizes_of_the_prompts(model, prompts, monkeypatch):
    asked = {}
    monkeypatch.setattr(doctor, "run_prompts", lambda _pipeline, _prompts, _seed, settings: asked.update(settings))
    succeed("inspect", model, "--prompts", prompts, "--steps", "1", "--height", "64", "--width", "64")
    assert asked == {"steps": 1, "guidance": None, "height": 64, "width": 64, "frames": None}
    run = ditquant("inspect", model, "--steps", "1")
    assert run.code == 2 and "Give --prompts" in run.err


def test_an_ill_model_says_where_it_begins(model, prompts, tmp_path):
    pipeline = sources.load_pipeline(str(model), torch.float32)
    pipeline.transformer.transformer_blocks[0].ff.net[2].bias.data[0] = torch.nan
    pipeline.save_pretrained(tmp_path / "ill")
    out = succeed("inspect", tmp_path / "ill", "--prompts", prompts, "--steps", "2", "-o", tmp_path / "doctor")
    said = out.splitlines()[-3:]
    assert said[0] == "transformer_blocks.0.ff.net.2: its bias holds NaN or infinite values"
    assert said[1] == "8 layers behind it: their input is NaN or infinite" and said[2].startswith("page in")
    troubles = json.loads((tmp_path / "doctor" / "inspect.json").read_text())["troubles"]
    assert [trouble["name"] for trouble in troubles] == [line.partition(":")[0] for line in said[:2]]
    assert "8 layers behind it" in (tmp_path / "doctor" / "report.html").read_text()


def test_what_cannot_be_examined_is_refused(model, quantized, prompts, tmp_path):
    run = ditquant("inspect", model, "-o", tmp_path / "doctor")
    assert run.code == 2 and "--prompts" in run.err
    run = ditquant("inspect", quantized, "--prompts", prompts)
    assert run.code == 2 and "quantized already" in run.err
    (tmp_path / "doctor").mkdir()
    (tmp_path / "doctor" / "mine.txt").write_text("mine")
    run = ditquant("inspect", model, "--prompts", prompts, "-o", tmp_path / "doctor")
    assert run.code == 2 and "--overwrite" in run.err
