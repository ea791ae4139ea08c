"""Checkpoints that are damaged, foreign or too new: exit code 2, one line, and nothing written."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.cli.command import contents, ditquant, refused
from tests.tiny import WIDTH

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
Q = "quantize bad -o out"
G = "generate bad -o fox.png --prompt x --steps 2"
LAYER = "transformer_blocks.1.ff.net.2"


def change_json(file: str, change):
    def damage(folder):
        data = json.loads((folder / file).read_text())
        change(data)
        (folder / file).write_text(json.dumps(data))

    return damage


def change_config(change):
    return change_json("transformer/config.json", change)


def change_plan(change):
    return change_config(lambda config: change(config["quantization_config"]["plan"]))


def change_tensors(change):
    """Change tensors and keep the file's own notes, which loading checks too."""

    def damage(folder):
        tensors = load_file(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, "pt") as file:
            notes = file.metadata()
        change(tensors)
        save_file(tensors, folder / WEIGHTS, notes)

    return damage


def cut(file: str, keep: float):
    def damage(folder):
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(len(data) * keep)])

    return damage


def set_value(name: str, value: float, place: int = 3):
    def change(tensors):
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[place] = value

    return change_tensors(change)


def write(file: str, text: str):
    return lambda folder: (folder / file).write_text(text)


FULL_PRECISION = {
    "nan weight": (set_value(f"{LAYER}.weight", float("nan")), (f"'{LAYER}.weight'", "NaN or infinite")),
    "nan bias": (set_value(f"{LAYER}.bias", float("nan")), (f"'{LAYER}.bias'", "NaN or infinite")),
    "infinite table": (set_value("scale_shift_table", float("inf")), ("'scale_shift_table'", "NaN or infinite")),
    "infinite weight": (set_value(f"{LAYER}.weight", float("inf")), (f"'{LAYER}.weight'", "NaN or infinite")),
    "truncated": (cut(WEIGHTS, 0.5), ("cannot load 'bad'", "complete")),
    "empty file": (cut(WEIGHTS, 0), ("cannot load 'bad'",)),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), ("cannot load 'bad'",)),
    "missing tensor": (change_tensors(lambda t: t.pop("proj_out.weight")), ("damaged", "'proj_out.weight'")),
    "wrong shape": (
        change_tensors(lambda t: t.update({"proj_out.bias": torch.zeros(3)})),
        ("cannot load 'bad'", "proj_out.bias"),
    ),
    "truncated vae": (cut("vae/diffusion_pytorch_model.safetensors", 0.9), ("cannot load 'bad'",)),
    "truncated text encoder": (cut("text_encoder/model.safetensors", 0.3), ("cannot load 'bad'",)),
    "config is no JSON": (cut("transformer/config.json", 0.5), ("damaged", "transformer/config.json")),
    "config is a list": (write("transformer/config.json", "[]"), ("transformer/config.json", "not a mapping")),
    "no config": (lambda folder: (folder / "transformer/config.json").unlink(), ("has no transformer/config.json",)),
    "index is no JSON": (write("model_index.json", "{"), ("damaged", "model_index.json")),
    "index is deep": (write("model_index.json", "[" * 100_000), ("damaged", "model_index.json")),
    "foreign class": (
        change_config(lambda c: c.update(_class_name="NoTransformer")),
        ("'NoTransformer'", "no model class of diffusers"),
    ),
    "class of the wrong kind": (
        change_config(lambda c: c.update(_class_name="DDIMScheduler")),
        ("'DDIMScheduler'", "no model class of diffusers"),
    ),
    "foreign pipeline": (change_json("model_index.json", lambda i: i.update(_class_name="None3Pipeline")), ("None3",)),
    "config that builds nothing": (change_config(lambda c: c.update(num_layers="two")), ("config.json",)),
    "no transformer": (change_json("model_index.json", lambda i: i.pop("transformer")), ("without a transformer",)),
    "code of its own": (
        change_json("model_index.json", lambda i: i.update(_class_name=["pipeline", "Mine"])),
        ("Python code of its own, which is not run",),
    ),
    "quantized by others": (
        change_config(lambda c: c.update(quantization_config={"quant_method": "bitsandbytes"})),
        ("quantized already",),
    ),
}

QUANTIZED = {
    "newer version": (change_plan(lambda p: p.update(version=99)), ("plan version 99", "Update ditquant")),
    "no plan": (change_config(lambda c: c["quantization_config"].pop("plan")), ("plan",)),
    "unknown key": (change_plan(lambda p: p.update(layer={})), ("unknown key of the plan 'layer'", "'layers'")),
    "layer that is not there": (
        change_plan(lambda p: p["layers"].update({"transformer_blocks.7.ff.net.2": 0})),
        ("damaged", "plan"),
    ),
    "bits that do not fit": (
        change_plan(lambda p: [s["weight"].update(bits=3) for s in p["schemes"]]),
        ("damaged", "plan"),
    ),
    "bits that do not exist": (change_plan(lambda p: p["schemes"][0]["weight"].update(bits=12)), ("bits 12", "2 to 8")),
    "missing codes": (change_tensors(lambda t: t.pop(f"{LAYER}.codes")), (f"{LAYER}.codes",)),
    "codes of another shape": (
        change_tensors(lambda t: t.update({f"{LAYER}.codes": t[f"{LAYER}.codes"][:-1].clone()})),
        (f"{LAYER}.codes",),
    ),
    "codes of another dtype": (
        change_tensors(lambda t: t.update({f"{LAYER}.codes": t[f"{LAYER}.codes"].float()})),
        (f"{LAYER}.codes",),
    ),
    "missing bias": (change_tensors(lambda t: t.pop(f"{LAYER}.bias")), (f"{LAYER}.bias",)),
    "truncated": (cut(WEIGHTS, 0.5), ("cannot load 'bad'", "complete")),
}


def refuse(place, source, damage, command, parts) -> None:
    shutil.copytree(source, place / "bad")
    damage(place / "bad")
    before = contents(place)
    refused(ditquant(*command.split()), *parts)
    assert contents(place) == before


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", FULL_PRECISION)
def test_full_precision(place, model, case):
    damage, parts = FULL_PRECISION[case]
    refuse(place, model, damage, Q, parts)


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized(place, quantized, case):
    damage, parts = QUANTIZED[case]
    refuse(place, quantized, damage, G, parts)


@pytest.mark.parametrize("case", ["newer version", "no plan", "unknown key", "bits that do not exist"])
def test_a_plan_that_inspect_reads(place, quantized, case):
    damage, parts = QUANTIZED[case]
    refuse(place, quantized, damage, "inspect bad", parts)


def test_inspect_checks_a_plan_against_the_model(place, quantized):
    damage, _ = QUANTIZED["layer that is not there"]
    refuse(place, quantized, damage, "inspect bad", ("'transformer_blocks.7.ff.net.2'", "no linear layer"))


def test_nan_activations_name_the_layer(place, model):
    (place / "one.txt").write_text("a fox")
    damage = set_value("transformer_blocks.1.scale_shift_table", 3e38, place=WIDTH + 3)  # a scale, which overflows
    refuse(place, model, damage, f"{Q} --prompts one.txt", ("'transformer_blocks.1.attn1.to_", "during calibration"))


def test_pictures_that_would_be_black(place, model):
    damage = set_value("proj_out.weight", float("nan"))
    refuse(place, model, damage, G, ("prompt 'x'", "its picture would be black"))
