"""Bytes that a model holds, and by how much a call exceeds them at its peak."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

CLEAR = Path("/proc/self/clear_refs")  # writing 5 makes the peak start at what is held now
STATUS = Path("/proc/self/status")


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in {*model.parameters(), *model.buffers()})


def growth(call: Callable[[], object], device: str = "cpu") -> int | None:
    """Bytes by which the peak of a call exceeds what is held before it; None where the system does not tell."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if device != "cpu" or not CLEAR.exists():
        return None
    give_back()
    CLEAR.write_text("5")
    before = status_bytes("VmHWM")
    call()
    return status_bytes("VmHWM") - before


def give_back() -> None:
    """Let the allocator give freed memory back, so that it is seen when it is taken again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def status_bytes(key: str) -> int:
    """Return a field of this process's status, such as VmHWM, its peak."""
    return 1024 * int(next(line for line in STATUS.read_text().splitlines() if line.startswith(key)).split()[1])
