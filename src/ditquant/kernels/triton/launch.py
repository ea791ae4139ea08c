"""Start Triton kernels on the device of their tensors, with the fastest of some configurations."""

import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from ditquant.kernels.triton.available import INTERPRETED

SWITCH = "DITQUANT_TUNE"  # 0 takes the first configuration
LANGUAGE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
Config = dict[str, int]
_chosen: dict[tuple, Config] = {}


def multiplied(dtype: torch.dtype) -> Any:
    """Return the type in which Triton multiplies numbers of a dtype; its interpreter would multiply bfloat16's bits."""
    return tl.float32 if INTERPRETED else LANGUAGE[dtype]


def power_of_two(n: int) -> int:
    """Return the smallest power of two from n on."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Run a kernel on the device of its first tensor."""
    first = next(value for value in arguments.values() if isinstance(value, Tensor))
    with torch.cuda.device_of(first):
        kernel[grid](**arguments)


def choose(key: tuple, configs: list[Config], run: Callable[[Config], None]) -> Config:
    """Return the fastest configuration, timed the first time that a key is met; `run` only writes its result.

    The first one where nothing can be timed: in the interpreter, while a CUDA graph is captured, or by the switch.
    """
    if INTERPRETED or len(configs) == 1 or os.environ.get(SWITCH) == "0" or torch.cuda.is_current_stream_capturing():
        return _chosen.get(key, configs[0])
    if key not in _chosen:
        _chosen[key] = min(configs, key=lambda config: _milliseconds(run, config))
    return _chosen[key]


def _milliseconds(run: Callable[[Config], None], config: Config) -> float:
    try:
        return triton.testing.do_bench(lambda: run(config), warmup=5, rep=20, return_mode="median")
    except OutOfResources:  # this card has less shared memory than the largest
        return float("inf")


def bucket(tokens: int) -> int:
    """Return what tuning distinguishes of a number of tokens: its power of two, up to 16,384."""
    return min(power_of_two(tokens), 16384)
