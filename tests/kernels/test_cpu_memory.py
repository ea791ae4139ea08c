"""What a product holds beside its packed weight: activations and one decoded tile."""

from pathlib import Path

import pytest
import torch

from ditquant.formats import PackedWeight
from ditquant.kernels import cpu, linear
from ditquant.specs import ActSpec, WeightSpec

WIDTH = 8192  # decoded 64 MiB, more than an allocator keeps for later
MIB = 1 << 20
CLEAR = Path("/proc/self/clear_refs")  # writing 5 makes the peak start at what is held now


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def growth(call) -> int:
    """Bytes by which the peak of a call exceeds what is held before it."""
    CLEAR.write_text("5")
    before = peak_bytes()
    call()
    return peak_bytes() - before


@pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))
@pytest.mark.skipif(not CLEAR.exists(), reason="peaks can be measured on Linux only")
def test_a_forward_holds_one_decoded_tile():
    codes = torch.randint(0, 256, (WIDTH, WIDTH // 2), dtype=torch.uint8)
    weight = PackedWeight(codes, {"scale": torch.ones(WIDTH, 1)}, (WIDTH, WIDTH), WeightSpec(4))
    x = torch.randn(64, WIDTH)  # 2 MiB, and as much comes out
    linear(x, weight, ActSpec(8), None)
    assert growth(lambda: linear(x, weight, ActSpec(8), None)) < 16 * MIB
