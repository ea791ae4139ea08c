"""An attention plan as a safetensors file of its own: orders, masks as bits, everything else as JSON in the header."""

import json
import os
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ditquant.atomic import atomic_file
from ditquant.attention.grid import TokenGrid
from ditquant.attention.plan import VERSION, AttentionPlan
from ditquant.errors import DitQuantError
from ditquant.specs import build

KEY = "ditquant.attention"
FIELDS = ("version", "grid", "steps", "qk_bits", "pv_bits", "density", "timesteps")


def save_plan(plan: AttentionPlan, path: str | os.PathLike, overwrite: bool = False) -> None:
    """Write a plan; the file appears complete or not at all."""
    text, tensors = _content(plan)
    with atomic_file(path, overwrite) as part:
        save_file(tensors, part, metadata={KEY: text, "crc32": _checksum(text, tensors)})


def plan_checksum(plan: AttentionPlan) -> str:
    """Return 8 hex digits that change with anything in the plan; its file has them too."""
    return _checksum(*_content(plan))


def load_plan(path: str | os.PathLike) -> AttentionPlan:
    """Read a plan.

    Raises:
        DitQuantError: no such file, a newer version, or a content that cannot be what was saved.
    """
    if not Path(path).is_file():
        raise DitQuantError(f"there is no attention plan at {path}.")
    try:
        with safe_open(str(path), "pt") as content:
            header = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None
    if KEY not in header:
        raise DitQuantError(f"{path} is no attention plan: its header says nothing about attention.")
    data = _read_header(path, header[KEY])
    if header.get("crc32") != _checksum(header[KEY], tensors):
        raise _damaged(path, "its values are not those that were saved")
    if "orders" not in tensors or tensors.keys() - {"orders", "masks"}:
        raise _damaged(path, f"it holds the tensors {sorted(tensors)}")
    try:
        data["grid"] = build(TokenGrid, data["grid"], "the grid")
        data["steps"], data["timesteps"] = tuple(data["steps"]), tuple(data["timesteps"])
        return AttentionPlan(**data, **tensors)
    except (DitQuantError, TypeError) as error:
        raise _damaged(path, str(error).rstrip(".")) from None


def _content(plan: AttentionPlan) -> tuple[str, dict[str, Tensor]]:
    tensors = {"orders": plan.orders} | ({} if plan.masks is None else {"masks": plan.masks})
    data = {name: getattr(plan, name) for name in FIELDS} | {"grid": asdict(plan.grid)}
    return json.dumps(data, sort_keys=True), {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _read_header(path: str | os.PathLike, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is no JSON") from None
    version = data.get("version") if isinstance(data, dict) else None
    if type(version) is int and version > VERSION:
        raise DitQuantError(
            f"{path} has attention plan version {version}, this ditquant reads up to {VERSION}. Update ditquant."
        )
    if not isinstance(data, dict) or data.keys() != set(FIELDS):
        raise _damaged(path, f"its header needs {', '.join(FIELDS)}")
    return data


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    value = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), value)
    return f"{value:08x}"


def _damaged(path: str | os.PathLike, what: str) -> DitQuantError:
    return DitQuantError(f"the attention plan {path} is damaged: {what}. Download it or fit it again.")
