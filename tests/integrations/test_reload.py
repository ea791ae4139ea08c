"""save_pretrained and from_pretrained: every bit comes back, for every family, dtype and way of storing."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from diffusers import AutoModel
from safetensors import safe_open
from safetensors.torch import load_file

import ditquant
from tests.cli.command import saved
from tests.integrations.built import equal_states, layers, quantized
from tests.tiny import TINY, run, tiny

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def test_mixed_recipe_holds_every_kind():
    plan = quantized().hf_quantizer.quantization_config.plan
    kinds = {t.kind for layer in plan.layers.values() for t in layer.transforms}
    assert kinds == set(ditquant.transforms.TRANSFORMS)
    assert {layer.weight.format for layer in plan.layers.values()} == set(ditquant.formats.FORMATS)


@pytest.mark.parametrize("name", TINY)
def test_forward_is_equal_for_every_family(name, tmp_path):
    model = quantized(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert equal_states(model, again) and layers(model).keys() == layers(again).keys() and not again.training
    assert torch.equal(run(model), run(again))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["pixart", "wan"])
def test_every_bit_in_every_dtype(name, dtype, tmp_path):
    """Wan keeps some modules in float32 whatever the dtype asked for."""
    model = quantized(name, dtype=dtype)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, torch_dtype=dtype)
    kept = tuple(type(model)._keep_in_fp32_modules or ())
    for key, value in model.state_dict().items():
        found = again.state_dict()[key]
        expected = value.float() if any(part in kept for part in key.split(".")) else value
        assert found.dtype == expected.dtype and torch.equal(found, expected), key
    assert {layer.weight.dtype for layer in layers(again).values()} == {dtype}
    assert again.dtype == model.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_words_survive_another_dtype(dtype, tmp_path):
    model = quantized(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, torch_dtype=dtype)
    state = again.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value.to(dtype) if value.is_floating_point() else value)
    assert run(again).dtype == dtype


def test_shards_variant_and_auto_model(tmp_path):
    model = quantized()
    model.save_pretrained(tmp_path, max_shard_size="20KB", variant="w4")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = AutoModel.from_pretrained(str(tmp_path), variant="w4")
    assert type(again) is type(model) and equal_states(model, again)
    again.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert equal_states(model, type(model).from_pretrained(tmp_path / "again"))


def test_shards_that_are_read_in_parallel(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.models.modeling_utils.HF_ENABLE_PARALLEL_LOADING", True, raising=False)
    model = quantized()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert equal_states(model, type(model).from_pretrained(tmp_path))


def test_saved_twice_is_equal(tmp_path):
    model = quantized()
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
    assert saved(tmp_path / "one") == saved(tmp_path / "two")


def test_the_plan_keeps_its_hash(tmp_path):
    """config.json sorts the layers; the plan must not depend on their order."""
    model = quantized("sd3")
    plan = model.hf_quantizer.quantization_config.plan
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).config.quantization_config.plan
    assert again.hash() == plan.hash() and dict(again.layers) == dict(plan.layers)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_save_too(copied, tmp_path):
    model = quantized()
    again = copied(model)
    assert equal_states(model, again) and torch.equal(run(model), run(again))
    again.register_to_config(sample_size=16)
    del model
    again.save_pretrained(tmp_path)
    assert type(again).from_pretrained(tmp_path).config.sample_size == 16


def test_the_state_dict_is_an_ordinary_one(tmp_path):
    model = quantized()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    model.load_state_dict(state)
    assert type(copy.copy(model.state_dict())).__name__ == "OrderedDict"
    assert "model" not in vars(pickle.loads(pickle.dumps(model.state_dict())))


def test_file_holds_integers_and_what_was_left(tmp_path):
    model = quantized()
    model.save_pretrained(tmp_path)
    tensors = load_file(next(tmp_path.glob("*.safetensors")))
    for name in layers(model):
        mine = {k: v for k, v in tensors.items() if k.startswith(name + ".") and not k.endswith(".bias")}
        assert mine and not any(v.is_floating_point() for v in mine.values())
        assert tensors.get(f"{name}.weight", torch.empty(0)).numel() == 0


def test_removed_weights_are_freed_and_models_die_without_the_collector():
    model = tiny("pixart")
    weights = [weakref.ref(m.weight) for _, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    names = ditquant.quantize(model, "rtn-w4a8").layers
    gc.collect()
    assert sum(ref() is None for ref in weights) == len(names)
    gc.disable()
    try:
        model.state_dict()
        died = weakref.ref(model.hf_quantizer)
        del model
        assert died() is None, "a reference cycle holds the quantizer and its model"
    finally:
        gc.enable()


def test_pickle_files_are_refused(tmp_path):
    with pytest.raises(ditquant.DitQuantError, match="safe_serialization"):
        quantized().save_pretrained(tmp_path, safe_serialization=False)


def test_header_is_in_every_shard(tmp_path):
    quantized().save_pretrained(tmp_path, max_shard_size="20KB")
    headers = set()
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            headers.add(content.metadata()["ditquant"])
    assert len(headers) == 1
