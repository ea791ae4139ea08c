"""What is listed, what is skipped and why."""

import pytest
import torch
from torch import nn

from ditquant.errors import DitQuantError
from ditquant.models import find_linears
from tests.tiny import TINY, tiny


@pytest.mark.parametrize("name", TINY)
def test_every_matrix_of_the_model_is_listed_or_skipped(name):
    model = tiny(name)
    coverage = find_linears(model)
    listed = sum(layer.parameters for layer in coverage.layers) + sum(s.parameters for s in coverage.skipped)
    assert listed == sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    names = [entry.name for entry in (*coverage.layers, *coverage.skipped)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", TINY)
def test_the_meta_device_gives_the_same(name):
    with torch.device("meta"):
        model = TINY[name]()
    assert any(p.is_meta for p in model.parameters())
    assert find_linears(model) == find_linears(tiny(name))


@pytest.mark.parametrize("name", TINY)
def test_shapes_are_the_weights(name):
    model = tiny(name)
    for layer in find_linears(model).layers:
        assert model.get_submodule(layer.name).weight.shape == (layer.out_features, layer.in_features)


def test_reasons():
    coverage = find_linears(tiny("pixart"))
    reasons = {entry.name: entry.reason for entry in coverage.skipped}
    assert reasons["pos_embed.proj"] == "not a linear layer"
    assert reasons["proj_out"] == "outside the transformer blocks: embedding or final projection"
    assert reasons["adaln_single.linear"] == reasons["caption_projection.linear_1"] == reasons["proj_out"]


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Plain(nn.Linear):
    pass


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = Plain(8, 16), Scaled(16, 8)
        self.attn = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.table = nn.Parameter(torch.zeros(6, 8))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])


def test_only_what_computes_like_a_linear_layer():
    coverage = find_linears(Model())
    assert [layer.name for layer in coverage.layers] == ["blocks.0.fc1", "blocks.1.fc1"]
    reasons = {entry.name: entry.reason for entry in coverage.skipped if entry.name.startswith("blocks.0")}
    assert reasons == {
        "blocks.0": "not a linear layer",
        "blocks.0.fc2": "its class computes something else than nn.Linear",
        "blocks.0.attn": "not a linear layer",
        "blocks.0.attn.out_proj": "its parent reads the weight without calling the layer",
    }


def test_weights_that_are_computed_or_integer_are_skipped():
    model = Model()
    nn.utils.parametrizations.weight_norm(model.blocks[0].fc1)
    model.blocks[1].fc1.weight = nn.Parameter(torch.zeros(16, 8, dtype=torch.int8), requires_grad=False)
    coverage = find_linears(model)
    reasons = {entry.name: entry.reason for entry in coverage.skipped}
    assert coverage.layers == ()
    assert reasons["blocks.0.fc1"] == "its weight is computed, not stored"
    assert reasons["blocks.1.fc1"] == "its weight is not floating point"


def test_a_shared_layer_is_listed_once():
    model = Model()
    model.blocks[1].fc1 = model.blocks[0].fc1
    layers = find_linears(model).layers
    assert [(layer.name, layer.aliases) for layer in layers] == [("blocks.0.fc1", ("blocks.1.fc1",))]


def test_lora_adapters_are_refused():
    peft = pytest.importorskip("peft")
    model = tiny("flux")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(DitQuantError, match=r"attn\.to_q' carries a LoRA adapter. Fuse or unload LoRAs"):
        find_linears(model)


def test_a_linear_layer_with_more_to_lose_than_its_weight_is_left():
    names = ("plain", "hooked", "pre", "buffer", "parameter", "child")
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
    model["empty"] = nn.Linear(4, 4)
    model["empty"].weight = nn.Parameter(torch.empty(0, 4))
    model["hooked"].register_forward_hook(lambda *_: None)
    model["pre"].register_forward_pre_hook(lambda *_: None)
    model["buffer"].register_buffer("scale", torch.ones(1))
    model["parameter"].gain = nn.Parameter(torch.ones(1))
    model["child"].norm = nn.LayerNorm(4)
    coverage = find_linears(model)
    assert [layer.name for layer in coverage.layers] == ["plain"]
    reasons = {s.name: s.reason for s in coverage.skipped}
    assert "hooks" in reasons["hooked"] and "hooks" in reasons["pre"] and "empty" in reasons["empty"]
    assert all("more than a weight" in reasons[name] for name in ("buffer", "parameter", "child"))
