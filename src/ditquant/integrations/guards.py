"""Methods of diffusers that would silently undo the quantization of a model refuse to run on it."""

from functools import partial
from typing import Any

from torch import nn

from ditquant.errors import DitQuantError

_FUSE_QKV = "would replace packed layers by full-precision ones. Call it before quantizing, or leave it out."
_REASONS = {
    "fuse_lora": "cannot write into packed weights. Leave the LoRA loaded beside them, or fuse it before quantizing.",
    "fuse_projections": _FUSE_QKV,
    "fuse_qkv_projections": _FUSE_QKV,
}


def guard(model: nn.Module) -> None:
    """Replace these methods wherever the model has them."""
    for module in model.modules():
        for name in _REASONS:
            if hasattr(module, name):
                setattr(module, name, partial(_refuse, name))


def unguard(model: nn.Module) -> None:
    """Give the methods back."""
    for module in model.modules():
        for name in _REASONS:
            module.__dict__.pop(name, None)


def _refuse(name: str, *_args: Any, **_kwargs: Any) -> None:
    raise DitQuantError(f"{name}() {_REASONS[name]}")
