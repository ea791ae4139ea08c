"""Quantized tiny models to save, load and break; each is made once and copied."""

import copy
from functools import cache
from pathlib import Path

import torch
from torch import nn

import ditquant
from ditquant.nn import QuantLinear
from tests.tiny import run, tiny

# every format, granularity and stored transform once, fast
MIXED = {
    "name": "mixed",
    "rules": [
        {
            "target": "role:attn_q",
            "weight": {"bits": 3, "symmetric": False},
            "activation": {"bits": 8},
            "transforms": ["smooth", {"kind": "hadamard", "options": {"block": 16}}],
        },
        {
            "target": "role:attn_k",
            "weight": {"bits": 4, "format": "twin_log"},
            "quantizer": "twin_log",
            "activation": {"bits": 8},
        },
        {
            "target": "role:attn_v",
            "weight": {"bits": 8, "group_size": 8},
            "activation": {"bits": 8, "granularity": "group", "group_size": 8},
            "transforms": [{"kind": "permute", "options": {"block": 8}}],
        },
        {
            "target": "role:attn_out",
            "weight": {"bits": 6},
            "activation": {"bits": 8, "granularity": "tensor", "symmetric": False},
            "transforms": [{"kind": "fast_dual_rotation", "options": {"block": 16}}],
        },
        {
            "target": "role:ffn_up",
            "weight": {"bits": 4},
            "activation": {"bits": 8, "granularity": "sample"},
            "transforms": [{"kind": "dual_rotation", "options": {"block": 16}}],
        },
        {"target": "role:ffn_down", "weight": {"bits": 5}},
        {"target": "role:*", "weight": {"bits": 4}, "activation": {"bits": 8}},
    ],
}
WEIGHT_ONLY = {"name": "plain", "rules": [{"target": "role:*", "weight": {"bits": 4}}]}


@cache
def _quantized(name: str, mixed: bool, dtype: torch.dtype) -> nn.Module:
    model = tiny(name).to(dtype)
    ditquant.quantize(model, MIXED if mixed else WEIGHT_ONLY, forward=run if mixed else None)
    return model


def quantized(name: str = "pixart", mixed: bool = True, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a fresh copy of a quantized tiny model; `mixed` has every kind of layer, else plain 4-bit weights."""
    return copy.deepcopy(_quantized(name, mixed, dtype))


@cache
def _saved(folder: Path, name: str) -> Path:
    _quantized(name, True, torch.float32).save_pretrained(folder / name)
    return folder / name


def layers(model: nn.Module) -> dict[str, QuantLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantLinear)}


def equal_states(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and equal_bits(a[k], b[k]) for k in a)


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def public_config(model: nn.Module) -> dict:
    return {k: v for k, v in model.config.items() if not k.startswith("_") and k != "quantization_config"}
