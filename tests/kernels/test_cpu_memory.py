"""What a product holds beside its packed weight: activations and one decoded tile.

Peaks are taken in a process of their own, since an allocator keeps what earlier work has freed.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ditquant.formats import PackedWeight
from ditquant.kernels import cpu, linear
from ditquant.specs import ActSpec, WeightSpec

WIDTH = 8192  # decoded 64 MiB
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


def measure() -> dict[str, int]:
    codes = torch.randint(0, 256, (WIDTH, WIDTH // 2), dtype=torch.uint8)
    weight = PackedWeight(codes, {"scale": torch.ones(WIDTH, 1)}, (WIDTH, WIDTH), WeightSpec(4))
    x = torch.randn(64, WIDTH)  # 2 MiB, and as much comes out
    linear(x, weight, ActSpec(8), None)
    return {
        "packed": growth(lambda: linear(x, weight, ActSpec(8), None)),
        "decoded": growth(lambda: linear(x, weight, ActSpec(8), None, decoded=True)),
    }


@pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))
@pytest.mark.skipif(not CLEAR.exists(), reason="peaks can be measured on Linux only")
def test_a_forward_holds_one_decoded_tile():
    run = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=True)
    grown = json.loads(run.stdout)
    assert grown["packed"] < 16 * MIB
    assert grown["decoded"] > 60 * MIB, "a decoded weight would be seen"


if __name__ == "__main__":
    print(json.dumps(measure()))
