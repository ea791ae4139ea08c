"""The time of attention within a call, from torch's profiler, and whether its kernel gives what torch gives."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from ditquant import kernels
from ditquant.bench.timing import sqnr_db, synchronize

OURS, TORCHS = "ditquant::attention", "aten::scaled_dot_product_attention"
CHECKED = 2  # shapes, of the first sample and the first two heads
WRONG = "wrong"


def attention_ms(call: Callable[[], object]) -> float | str:
    """Return the milliseconds that a call spends in attention; "wrong" if the kernel is worse than torch's."""
    call()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities, record_shapes=True) as seen:
        call()
        synchronize()
    events = [event for event in seen.key_averages(group_by_input_shape=True) if _attends(event.key)]
    for event in events[:CHECKED]:
        if event.key.startswith(OURS) and not _sound(event.input_shapes):
            return WRONG
    return sum(_microseconds(event) for event in events) / 1000


def _attends(name: str) -> bool:
    return name.startswith(OURS) or name == TORCHS


def _microseconds(event: Any) -> float:
    return event.device_time_total or event.cpu_time_total


def _sound(shapes: list[list[int]]) -> bool:
    """Compare with torch on random values of the shapes of q and of k and v."""
    q_shape, k_shape = ([1, min(2, shape[1]), *shape[2:]] for shape in shapes[:2])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator).bfloat16() for shape in (q_shape, k_shape, k_shape))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torchs = F.scaled_dot_product_attention(q, k, v)
    return sqnr_db(exact, kernels.attention(q, k, v)) > sqnr_db(exact, torchs) - 6.0206
