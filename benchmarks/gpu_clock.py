"""Time what runs on a device, contestants taking turns; the peaks that the card reaches; what machine it is."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable

import torch
from torch import Tensor

import ditquant

Calls = dict[str, Callable[[], object]]
LAUNCHES = 5  # of a contestant within a round


def rounds_of(calls: Calls, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of one call of every contestant, once a round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 2):
        for name, call in calls.items():
            found = _seconds(call, device)
            if i > 1:
                seconds[name].append(found)
    return seconds


def _seconds(call: Callable[[], object], device: str) -> float:
    if device == "cpu":  # the script itself is tried there, in Triton's interpreter
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(LAUNCHES):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / LAUNCHES


def table(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median milliseconds of every contestant, and how many times faster than `base`, round by round."""
    return {
        name: {
            "ms": round(1000 * statistics.median(times), 4),
            f"times {base}": round(statistics.median(b / a for a, b in zip(times, seconds[base], strict=True)), 3),
        }
        for name, times in seconds.items()
    }


def relative(found: Tensor, exact: Tensor) -> float:
    """Relative error in float64."""
    exact = exact.double()
    return float((found.double() - exact).norm() / exact.norm())


def peaks(device: str, rounds: int) -> dict[str, float]:
    """Bfloat16 and INT8 products of 8192 a side in 10^12 operations a second, and copying in 10^12 bytes a second."""
    side = 8192 if device != "cpu" else 64
    a = torch.randn(side, side, device=device).bfloat16()
    codes = torch.randint(-127, 128, (side, side), device=device, dtype=torch.int8)
    much = torch.empty(2**30 if device != "cpu" else 2**16, dtype=torch.int8, device=device)
    calls: Calls = {
        "bfloat16": lambda: a @ a.T,
        "int8": lambda: torch._int_mm(codes, codes.T),
        "copy": much.clone,
    }
    seconds = {name: statistics.median(times) for name, times in rounds_of(calls, rounds, device).items()}
    work = {"bfloat16": 2 * side**3, "int8": 2 * side**3, "copy": 2 * much.numel()}
    return {name: round(work[name] / seconds[name] / 1e12, 2) for name in calls}


def machine(device: str) -> dict[str, object]:
    """Name of the card, driver, versions."""
    facts: dict[str, object] = {"python": platform.python_version(), "torch": torch.__version__}
    facts["ditquant"] = ditquant.__version__
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    if device == "cpu":
        return facts | {"card": "none: Triton's interpreter, whose times mean nothing"}
    properties = torch.cuda.get_device_properties(device)
    facts |= {"card": properties.name, "capability": f"{properties.major}.{properties.minor}"}
    facts |= {"multiprocessors": properties.multi_processor_count, "memory_gib": round(properties.total_memory / 2**30)}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        found = []
    return facts | {"driver": found[0] if found else None, "cuda": torch.version.cuda}
