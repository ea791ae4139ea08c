"""Weights of feature networks from local files; nothing is downloaded, and only safetensors are read."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ditquant.errors import DitQuantError, first_line


def cache() -> Path:
    """Return the folder where networks are looked for if no path is given."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ditquant"


def read(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        DitQuantError: no such file, another format, or a damaged file.
    """
    if not path.is_file():
        raise DitQuantError(f"there is no file {str(path)!r}.")
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise DitQuantError(f"{str(path)!r} is not a safetensors file: {first_line(error)}") from None


def fill(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Load the tensors that a network has; others in the file are left out.

    Raises:
        DitQuantError: a tensor is missing, or has another shape.
    """
    # counters of batch normalization play no part in the forward pass
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, tensor in wanted.items():
        if name not in tensors:
            raise DitQuantError(f"{str(path)!r} has no tensor {name!r}.")
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
            raise DitQuantError(f"{name!r} of {str(path)!r} has shape {shapes}.")
    network.load_state_dict({name: tensors[name] for name in wanted}, strict=False)
    return network.eval().requires_grad_(False)


def as_batch(frames: Tensor) -> Tensor:
    """Return uint8 [..., H, W, 3] as float32 [B, 3, H, W] from 0 to 255."""
    return frames.reshape(-1, *frames.shape[-3:]).movedim(-1, 1).to(torch.float32)
