"""Offloading and device maps: integer Parameters travel where buffers would be lost."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from ditquant import DitQuantConfig, DitQuantError
from tests.integrations.built import equal_states, layers, quantized
from tests.tiny import TINY, inputs, run, tiny


@torch.no_grad()
def forward(model):
    """The inputs of `run`, whose device is that of parameters, which are offloaded here."""
    return model(**inputs(quantized()))[0]


def near(made, truth):
    """Offloaded transforms run in torch before the kernel, not in it, which rounds a code to its neighbour at times."""
    return bool((made - truth).square().sum() < 1e-5 * truth.square().sum())


def test_cpu_offload():
    model, truth = quantized(), run(quantized())
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(iter(layers(model).values())).codes.is_meta and near(forward(model), truth)


def test_disk_offload(tmp_path):
    model, truth = quantized(), run(quantized())
    disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert next(iter(layers(model).values())).codes.is_meta and near(forward(model), truth)


@pytest.fixture
def saved(tmp_path):
    quantized().save_pretrained(tmp_path / "model", max_shard_size="30KB")
    return tmp_path / "model"


def load(saved, **options):
    return type(quantized()).from_pretrained(saved, **options)


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential", {"": "cpu"}])
def test_device_maps(saved, device_map):
    model = load(saved, device_map=device_map)
    assert torch.equal(run(model), run(quantized()))


@pytest.mark.parametrize("name", TINY)
def test_auto_needs_no_help_of_the_class(name, tmp_path):
    model = quantized(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, device_map="auto")
    assert again._no_split_modules and equal_states(model, again)
    assert type(model)._no_split_modules is type(tiny(name))._no_split_modules, "the class stays as it was"


def disk_map(folder):
    outer = quantized()
    device_map = {name: "cpu" for name, _ in (*outer.named_children(), *outer.named_parameters(recurse=False))}
    del device_map["transformer_blocks"]
    device_map |= {"transformer_blocks.0": "cpu", "transformer_blocks.1": "disk"}
    return {"device_map": device_map, "offload_folder": folder / "offload"}


# accelerate's check overlooks a model's own parameters
overlooked = pytest.mark.filterwarnings("ignore:The following device_map keys:UserWarning")


@overlooked
def test_disk_in_a_device_map(saved, tmp_path):
    model = load(saved, **disk_map(tmp_path))
    codes = {name: layer.codes.is_meta for name, layer in layers(model).items()}
    assert all(meta == name.startswith("transformer_blocks.1") for name, meta in codes.items())
    assert near(forward(model), run(quantized()))
    with pytest.raises(DitQuantError, match="offloaded"):
        model.save_pretrained(tmp_path / "again")


@overlooked
def test_values_on_disk_are_checked(saved, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr("ditquant.nn.QuantLinear.check", lambda self, name: checked.append(self.codes.is_meta))
    load(saved, **disk_map(tmp_path))
    assert checked and not any(checked)


def test_quantizing_on_the_fly_onto_disk_is_refused(tmp_path):
    tiny("pixart").save_pretrained(tmp_path / "model")
    with pytest.raises(DitQuantError, match="cannot offload to disk"):
        load(tmp_path / "model", quantization_config=DitQuantConfig(recipe="rtn-w4a8"), **disk_map(tmp_path))
