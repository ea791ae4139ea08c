"""Checksums of a checkpoint: of every tensor, of the model's config and of the plan, in each safetensors header.

diffusers asks the quantizer when it saves and when it loads. Where it is too old to ask, checkpoints carry none.
"""

import inspect
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ditquant.errors import DitQuantError, damaged
from ditquant.specs import QuantPlan

KEY = "ditquant"


def checksum(tensor: Tensor) -> str:
    """Return the CRC-32 of dtype, shape and bytes."""
    kind = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{zlib.crc32(data, zlib.crc32(kind)):08x}"


def describe(model: nn.Module, state_dict: Mapping[str, Tensor], plan: QuantPlan) -> str:
    """Return what the header says about a model that is being saved.

    Raises:
        DitQuantError: the state dict is not that of the quantized model alone, or not in memory.
    """
    tensors = {}
    for name, tensor in state_dict.items():
        if ".base_layer." in name:
            raise DitQuantError(
                f"{name.partition('.base_layer.')[0]!r} carries a LoRA. "
                "Unload it before saving (unload_lora_weights), and save it by itself (save_lora_weights)."
            )
        if tensor.is_meta:
            raise DitQuantError(f"{name!r} is offloaded. Save the model before offloading it.")
        tensors[name] = checksum(tensor)
    return json.dumps({"tensors": tensors, "config": config_of(model), "plan": plan.hash()}, sort_keys=True)


def config_of(model: nn.Module) -> dict[str, Any]:
    """Return a model's configuration as it looks after a trip through JSON, without the plan."""
    config = {k: v for k, v in model.config.items() if not k.startswith("_") and k != "quantization_config"}
    return json.loads(json.dumps(config, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))


class Checksums:
    """What a checkpoint's headers say; each tensor is compared when it arrives."""

    def __init__(self, data: Any):
        if not isinstance(data, dict) or data.keys() != {"tensors", "config", "plan"}:
            raise damaged("its list of checksums is incomplete")
        self.tensors, self.config, self.plan = data["tensors"], data["config"], data["plan"]
        if not isinstance(self.tensors, dict) or not isinstance(self.config, dict):
            raise damaged("its list of checksums is none")
        self.seen: set[str] = set()

    @staticmethod
    def read(files: Iterable[str], expected: bool) -> "Checksums | None":
        """Read the headers of all files; None if the checkpoint has no checksums and none are `expected`."""
        texts = {_read_header(str(file)) for file in files}
        if len(texts) > 1:
            raise damaged("its files do not belong together")
        text = texts.pop() if texts else None
        if text is None:
            if expected:
                raise damaged("config.json promises checksums, but the weights have none")
            return None
        try:
            return Checksums(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise error if isinstance(error, DitQuantError) else damaged("its list of checksums is no JSON") from None

    def check_names(self, names: Iterable[str], plan: QuantPlan) -> None:
        """Compare the names of the tensors, and the plan of config.json."""
        if wrong := sorted(self.tensors.keys() ^ set(names)):
            state = "is missing" if wrong[0] in self.tensors else "was not saved with it"
            raise damaged(f"tensor {wrong[0]!r} {state}")
        if self.plan != plan.hash():
            raise damaged(f"the plan in config.json has hash {plan.hash()}, the weights were saved with {self.plan}")

    def check_config(self, model: nn.Module) -> None:
        """Compare the configuration that the model was built with; options of a newer diffusers may be added."""
        config, options = config_of(model), inspect.signature(type(model).__init__).parameters
        for key in sorted(config.keys() | self.config.keys()):
            if key not in self.config and key in options:
                continue
            now, saved = (json.dumps(c[key], sort_keys=True) if key in c else "nothing" for c in (config, self.config))
            if now != saved:
                raise DitQuantError(
                    f"the model is built with {key} = {now}, its weights were saved with {saved}. "
                    f"Leave {key} out of from_pretrained, or download config.json again if it is damaged."
                )

    def check_tensors(self, state_dict: Mapping[str, Tensor]) -> None:
        """Compare tensors as they are in the file."""
        for name, tensor in state_dict.items():
            if name not in self.tensors or checksum(tensor) != self.tensors[name]:
                raise damaged(f"the values of {name!r} are not those that were saved")
            self.seen.add(name)

    def check_complete(self) -> None:
        """Check that every tensor came by."""
        if missing := sorted(self.tensors.keys() - self.seen):
            raise damaged(f"tensor {missing[0]!r} is missing")


def _read_header(file: str) -> str | None:
    if not file.endswith(".safetensors"):
        return None
    try:
        with safe_open(file, "pt") as content:
            return (content.metadata() or {}).get(KEY)
    except SafetensorError as error:
        raise damaged(f"{Path(file).name}: {error}") from None
