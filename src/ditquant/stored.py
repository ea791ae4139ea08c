"""What the safetensors files of a model hold, read from their headers."""

import json
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from ditquant.errors import damaged

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_PLAIN = ("diffusion_pytorch_model.safetensors", "model.safetensors")


def tensor_files(folder: Path) -> list[Path]:
    """Return the files that a component is loaded from: its shards, its one file, or whatever there is."""
    for name in _PLAIN:
        index = folder / f"{name}.index.json"
        if index.exists():
            return [folder / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if (folder / name).exists():
            return [folder / name]
    return sorted(folder.glob("*.safetensors"))


def only_variant(folder: Path) -> str | None:
    """Return the variant, such as fp16, whose weights are the only ones of a component; None if there are plain ones.

    diffusers names a variant behind the first dot: model.fp16.safetensors, model.fp16-00001-of-00002.safetensors.
    """
    found = {file.name.split(".")[1].split("-0")[0] for file in folder.glob("*.safetensors")}
    return found.pop() if len(found) == 1 and "safetensors" not in found else None


def float_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Map the floating-point tensors of a component to the dtypes they are stored in.

    Raises:
        DitQuantError: a file is not safetensors, or is cut off.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, torch.dtype] = {}
    for file in tensor_files(folder):
        try:
            with safe_open(file, "pt") as tensors:
                kinds = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise damaged(f"cannot read {file}: {error}") from None
        found.update({key: _FLOATS[kind] for key, kind in kinds.items() if kind in _FLOATS})
    return found


def main_dtype(folder: Path) -> torch.dtype:
    """Return the dtype that most floating-point tensors of a component are stored in, float32 if it has none."""
    kinds = Counter(float_dtypes(folder).values())
    return kinds.most_common(1)[0][0] if kinds else torch.float32


def cast_back(module: nn.Module, folder: Path) -> None:
    """Cast every floating-point tensor to the dtype it is stored in, so that a copy keeps size and bits.

    Tensor by tensor, because diffusers refuses to cast a quantized model as a whole.
    """
    stored = float_dtypes(folder)
    if not stored:
        return
    usual = main_dtype(folder)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(stored.get(name, usual))
