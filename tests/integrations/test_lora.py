"""LoRA beside quantized layers: loaded, switched, unloaded and trained as on the model that they decode to."""

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict

from ditquant import DitQuantError
from ditquant.nn import QuantLinear
from tests.integrations.built import layers, quantized
from tests.tiny import inputs, run, tiny

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def lora_state(name="wan", scale=0.3):
    """A LoRA's state dict, as it would come from a file."""
    model = tiny(name)
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(r=4, target_modules=TARGETS))
    return {f"transformer.{k}": torch.randn_like(v) * scale for k, v in get_peft_model_state_dict(model).items()}


@pytest.fixture
def decodes(monkeypatch):
    """Count how often a weight is decoded."""
    calls, decode = [], QuantLinear.dequantize

    def count(self):
        calls.append(self)
        return decode(self)

    monkeypatch.setattr(QuantLinear, "dequantize", count)
    return calls


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_lora_is_what_it_would_be_on_the_decoded_model(name, decodes):
    model = quantized(name, mixed=False)
    plain = copy.deepcopy(model).dequantize()
    decodes.clear()
    before, state = run(model), lora_state(name)
    model.load_lora_adapter(dict(state))
    plain.load_lora_adapter(dict(state))
    with_lora = run(model)
    assert not decodes, "loading and running a LoRA decodes no weight"
    torch.testing.assert_close(with_lora, run(plain), rtol=1e-3, atol=1e-4)
    assert (with_lora - before).norm() > 0.05 * before.norm()
    model.disable_lora()
    assert torch.equal(run(model), before)
    model.enable_lora()
    assert torch.equal(run(model), with_lora)
    model.unload_lora()
    assert torch.equal(run(model), before) and len(layers(model)) == len(layers(quantized(name, mixed=False)))


def test_add_adapter_decodes_nothing(decodes):
    model = quantized("wan")
    before = run(model)
    model.add_adapter(LoraConfig(r=4, target_modules=TARGETS))
    assert torch.equal(run(model), before) and not decodes
    model.delete_adapters("default")


def test_peft_alone(tmp_path, decodes):
    """PixArt has no LoRA loader in diffusers."""
    model = quantized(mixed=False)
    before = run(model)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False))
    with_lora = run(wrapped.base_model.model)
    assert not torch.allclose(with_lora, before) and not decodes
    wrapped.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(quantized(mixed=False), tmp_path)
    assert torch.equal(run(again.base_model.model), with_lora)
    with pytest.raises(DitQuantError, match="cannot be fused"):
        wrapped.merge_and_unload()
    assert torch.equal(run(wrapped.unload()), before)


def flux_pipeline(transformer):
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, transformer)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_flux_pipeline_loads_stacks_and_unloads(tmp_path, decodes):
    """Its loader looks weights up in the state dict and reads every linear layer's data."""
    model = quantized("flux", mixed=False)
    pipeline, before = flux_pipeline(model), run(model)
    decodes.clear()
    pipeline.load_lora_weights(lora_state("flux"), adapter_name="one")
    pipeline.load_lora_weights(lora_state("flux", 0.1), adapter_name="two")
    pipeline.set_adapters(["one", "two"], [0.5, 1.0])
    assert not torch.allclose(run(model), before) and not decodes
    pipeline.unload_lora_weights()
    assert torch.equal(run(model), before)


@pytest.mark.parametrize("whole", [True, False], ids=["pipeline", "model"])
def test_fusing_is_refused_and_changes_nothing(whole):
    model = quantized("flux", mixed=False)
    pipeline = flux_pipeline(model)
    pipeline.load_lora_weights(lora_state("flux"))
    before = run(model)
    with pytest.raises(DitQuantError, match=r"fuse_lora\(\) cannot write into packed weights"):
        (pipeline if whole else model).fuse_lora()
    assert torch.equal(run(model), before)


@pytest.mark.parametrize("safe", [True, False])
def test_merging_by_peft_itself_is_refused(safe):
    model = quantized("wan", mixed=False)
    model.load_lora_adapter(lora_state())
    before = run(model)
    layer = next(m for m in model.modules() if hasattr(m, "base_layer"))
    with pytest.raises(DitQuantError, match="a LoRA cannot be fused into it"):
        layer.merge(safe_merge=safe)
    assert torch.equal(run(model), before)


def test_saving_with_a_lora_is_refused(tmp_path):
    model = quantized("wan")
    model.load_lora_adapter(lora_state())
    with pytest.raises(DitQuantError, match="carries a LoRA"):
        model.save_pretrained(tmp_path)
    model.unload_lora()
    model.save_pretrained(tmp_path)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["wan", "flux"])
def test_training_a_lora(name, checkpointing):
    """Rounded activations pass gradients as if they were not rounded, also to adapters of earlier layers."""
    model = quantized(name).train()
    words = {k: v.clone() for k, v in model.state_dict().items()}
    model.requires_grad_(False)
    # only where every way to the output leads through a quantized layer
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    if checkpointing:
        model.enable_gradient_checkpointing()
    model(**inputs(model))[0].square().mean().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    unused = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert trained and not unused
    with torch.no_grad():
        loss = model(**inputs(model))[0].square().mean()
        for parameter in trained.values():
            parameter -= 1e-3 * parameter.grad / parameter.grad.norm()
        assert model(**inputs(model))[0].square().mean() < loss
    after = model.state_dict()
    assert all(torch.equal(v, after[k if k in after else rename(k, after)]) for k, v in words.items())


def rename(key, state):
    """A layer's tensors move below `base_layer` when an adapter wraps it."""
    parts = key.split(".")
    return next(name for i in range(len(parts)) if (name := ".".join((*parts[:i], "base_layer", *parts[i:]))) in state)
