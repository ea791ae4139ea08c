"""What the header's checksums notice, and what they leave alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditquant import DitQuantError
from ditquant.integrations import checksums
from ditquant.integrations.checksums import KEY, Checksums, checksum
from tests.integrations.built import equal_states, quantized


@pytest.fixture
def saved(tmp_path):
    quantized(mixed=False).save_pretrained(tmp_path)
    return tmp_path


def load(folder, **options):
    return type(quantized(mixed=False)).from_pretrained(folder, **options)


def edit_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_tensors(folder, change, keep_header=True):
    path = next(folder.glob("*.safetensors"))
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=header if keep_header else {"format": "pt"})


def flip(tensors, name):
    tensors[name].view(-1).view(torch.uint8)[0] ^= 1


@pytest.mark.parametrize(
    "name", ["transformer_blocks.0.attn1.to_q.bias", "proj_out.weight", "transformer_blocks.1.attn2.to_k.codes"]
)
def test_one_bit_of_any_tensor(saved, name):
    edit_tensors(saved, lambda tensors: flip(tensors, name))
    with pytest.raises(DitQuantError, match=f"damaged: the values of '{name}'"):
        load(saved)


def test_tensors_that_are_gone_added_or_renamed(saved):
    edit_tensors(saved, lambda t: t.update(extra=torch.zeros(3)))
    with pytest.raises(DitQuantError, match="'extra' was not saved with it"):
        load(saved)
    edit_tensors(saved, lambda t: (t.pop("extra"), t.pop("proj_out.bias")))
    with pytest.raises(DitQuantError, match=r"'proj_out\.bias' is missing"):
        load(saved)


def test_the_list_itself(saved):
    edit_tensors(saved, lambda t: None, keep_header=False)
    with pytest.raises(DitQuantError, match="promises checksums"):
        load(saved)
    edit_config(saved, lambda c: c["quantization_config"].pop("checksums"))
    load(saved)  # as an older diffusers saves


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"tensors": 1, "config": {}, "plan": ""}', "[" * 10_000])
def test_a_list_that_is_none(text):
    with pytest.raises((DitQuantError, ValueError, RecursionError)) as error:
        Checksums(json.loads(text))
    assert text in ("", "{", "[" * 10_000) or isinstance(error.value, DitQuantError)


def test_config_names_key_and_values(saved):
    edit_config(saved, lambda c: c.update(norm_eps=1e-5))
    with pytest.raises(DitQuantError, match=r"norm_eps = 1e-05, its weights were saved with 1e-06"):
        load(saved)
    edit_config(saved, lambda c: c.update(norm_eps=1e-6, new_key=3))
    with pytest.raises(DitQuantError, match="new_key = 3, its weights were saved with nothing"):
        load(saved)


def test_an_option_of_from_pretrained_is_refused(saved):
    with pytest.raises(DitQuantError, match="Leave sample_size out of from_pretrained"):
        load(saved, sample_size=32)


def test_options_of_a_newer_diffusers_may_come(saved, monkeypatch):
    read = Checksums.read

    def older(*args):
        found = read(*args)
        del found.config["use_additional_conditions"]
        return found

    monkeypatch.setattr(Checksums, "read", staticmethod(older))
    load(saved)


def test_a_lost_quantization_config_is_not_taken_for_an_ordinary_model(saved):
    edit_config(saved, lambda c: c.pop("quantization_config"))
    with pytest.raises(ValueError, match=r"attn1\.to_k\.weight expected shape"):
        load(saved)


def test_another_plan(saved):
    def change(config):
        config["quantization_config"]["plan"]["schemes"][0]["activation"] = {"bits": 8}

    edit_config(saved, change)
    with pytest.raises(DitQuantError, match=r"plan in config\.json has hash"):
        load(saved)


def test_unknown_keys_of_the_configuration(saved):
    edit_config(saved, lambda c: c["quantization_config"].update(checksum=True))
    with pytest.raises(DitQuantError, match=r"Did you mean 'checksums'"):
        load(saved)


def test_shards_of_two_checkpoints(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        model = quantized(mixed=False)
        model.proj_out.bias.data += seed
        model.save_pretrained(tmp_path / name, max_shard_size="20KB")
    first = sorted((tmp_path / "one").glob("*.safetensors"))[0]
    first.write_bytes((tmp_path / "two" / first.name).read_bytes())
    with pytest.raises(DitQuantError, match="do not belong together"):
        load(tmp_path / "one")


def test_a_diffusers_without_the_hooks(saved, tmp_path, monkeypatch):
    """It would not call the quantizer, and config.json must not promise what is not there."""
    monkeypatch.setattr("ditquant.integrations.config.CHECKSUMS_SUPPORTED", False)
    for hook in ("maybe_update_loaded_keys", "maybe_update_state_dict"):
        monkeypatch.setattr(f"ditquant.DitQuantizer.{hook}", lambda self, first, *_: first)
    assert equal_states(load(saved), quantized(mixed=False))
    with monkeypatch.context() as patch:
        patch.setattr("ditquant.DitQuantizer.get_state_dict_and_metadata", lambda self, state, **_: (state, {}))
        quantized(mixed=False).save_pretrained(tmp_path / "old")
    monkeypatch.undo()
    assert not json.loads((tmp_path / "old/config.json").read_text())["quantization_config"]["checksums"]
    again = load(tmp_path / "old")
    again.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new/config.json").read_text())["quantization_config"]["checksums"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.int64])
def test_checksum_covers_dtype_shape_and_bytes(dtype):
    tensor = torch.zeros(2, 3, dtype=dtype)
    others = [torch.zeros(3, 2, dtype=dtype), torch.zeros(6, dtype=dtype), torch.ones(2, 3, dtype=dtype)]
    assert checksum(tensor) == checksum(torch.zeros(3, 2, dtype=dtype).T.contiguous())
    assert len({checksum(t) for t in (tensor, *others, torch.zeros(2, 3, dtype=torch.int32))}) == 5
    assert checksum(torch.ones((), dtype=dtype)) != checksum(torch.zeros(0, dtype=dtype))


def test_a_strided_tensor_counts_by_its_values():
    tensor = torch.arange(12.0).view(3, 4)
    assert checksum(tensor.T) == checksum(tensor.T.contiguous())


def test_one_line():
    with pytest.raises(DitQuantError) as error:
        Checksums({"tensors": {}})
    assert "\n" not in str(error.value) and KEY == checksums.KEY
