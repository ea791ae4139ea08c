"""Whether Triton kernels can run on a device: a CUDA card that they are written for, or the interpreter on a CPU."""

import importlib.util
import os
from functools import cache
from importlib.metadata import version

import torch

SWITCH = "DITQUANT_TRITON_KERNELS"  # 0 leaves them alone
LEAST = (3, 2)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton itself reads this once, when it is imported


@cache
def _why_no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    found = version("triton")
    if tuple(int(part) for part in found.split(".")[:2]) < LEAST:
        return f"triton {found} is older than {'.'.join(map(str, LEAST))}"
    return None


@cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@torch.compiler.assume_constant_result
def why_not(device: torch.device) -> str | None:
    """Say why Triton kernels cannot run on a device; None if they can."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if device.type != ("cpu" if INTERPRETED else "cuda"):
        return f"there are no Triton kernels for {device.type}"
    if (reason := _why_no_triton()) is not None or INTERPRETED:
        return reason
    if torch.version.hip is not None:
        return "the Triton kernels were written for NVIDIA cards"
    major, minor = _capability(device.index)
    return None if major >= 8 else f"the card has compute capability {major}.{minor}, the Triton kernels need 8.0"
