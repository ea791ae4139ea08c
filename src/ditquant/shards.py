"""Save a quantized model that lies on disk: tensor by tensor, in shards, with the checksums that any other one has."""

import json
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from ditquant.integrations import checksums
from ditquant.integrations.state_dict import stumbling_block
from ditquant.on_disk import Place

SHARD_BYTES = 1 << 30


class State(Mapping[str, Tensor]):
    """The state of a model by name; tensors are read from their places when they are asked for."""

    def __init__(self, model: Any, places: Mapping[str, Place]):
        self.model, self._places, self._here = model, places, model.state_dict()

    def __getitem__(self, name: str) -> Tensor:
        here = self._here[name]
        return self._places[name].read() if here.is_meta or name in self._places else here

    def __iter__(self) -> Iterator[str]:
        return iter(self._here)

    def __len__(self) -> int:
        return len(self._here)


def save(model: Any, places: Mapping[str, Place], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config and weights of a quantized model as `save_pretrained` does, holding one shard at a time.

    `places` says where its tensors lie: codes and their parameters, and whatever was not quantized.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder)
    plan = model.hf_quantizer.quantization_config.plan
    tensors = ChainMap(stumbling_block(plan), State(model, places))  # not a dictionary, which would read them all
    described = {checksums.KEY: checksums.describe(model, tensors, plan)}
    written = [_write(folder, i, shard, described) for i, shard in enumerate(_shards(tensors, shard_bytes))]
    if len(written) == 1:
        (folder / _part(0)).rename(folder / SAFETENSORS_WEIGHTS_NAME)
        return
    names: dict[str, str] = {}
    for i, (keys, _) in enumerate(written):
        file = SAFETENSORS_WEIGHTS_NAME.replace(".safetensors", f"-{i + 1:05}-of-{len(written):05}.safetensors")
        (folder / _part(i)).rename(folder / file)
        names |= dict.fromkeys(keys, file)
    index = {"metadata": {"total_size": sum(size for _, size in written), **described}, "weight_map": names}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """Yield tensors in pieces of at most `limit` bytes, or of a single larger one."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard


def _write(folder: Path, i: int, shard: dict[str, Tensor], described: dict[str, str]) -> tuple[list[str], int]:
    save_file(shard, folder / _part(i), {"format": "pt", **described})
    return list(shard), sum(tensor.nbytes for tensor in shard.values())


def _part(i: int) -> str:
    return f"part-{i}.safetensors"
