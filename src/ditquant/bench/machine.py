"""What figures were measured on."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("ditquant", "torch", "diffusers", "triton", "torchao", "optimum-quanto")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return versions, processor, threads, and the GPU if it is one."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    facts: dict[str, Any] = {"versions": {name: found for name, found in versions.items() if found}}
    facts |= {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": device}
    if device.startswith("cuda"):
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def cpu_name() -> str:
    """Name of the processor, with its family and model where it does not tell more."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    name = fields.get("model name", platform.processor())
    return f"{name}, family {fields['cpu family']}, model {fields['model']}" if "model" in fields else name


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
