"""What a memory limit is spent on when a model's blocks are read one at a time."""

import ctypes
import resource
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ditquant.calibration import statistics_bytes
from ditquant.engine import match
from ditquant.errors import DitQuantError
from ditquant.models import Layer, family_of, walk_blocks
from ditquant.on_disk import listed
from ditquant.quantizers import NEEDS_GRAM
from ditquant.recipe import Recipe
from ditquant.rule import Rule

UNITS = {"B": 1, "MB": 10**6, "MiB": 1 << 20, "GB": 10**9, "GiB": 1 << 30, "TB": 10**12, "TiB": 1 << 40}
FIT_COPIES = 10  # copies of a weight, in float32, that fitting its layer may hold
RECORDED_LEAST = 64 << 20
MAPPED_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3  # of malloc.h


def parse_size(text: str) -> int:
    """Return a number of bytes from a number with its unit, such as 4GiB or 1.5 GB.

    Raises:
        DitQuantError: no unit, another one, or no positive number.
    """
    number = text.strip().rstrip("aBbgGiIkKmMtT").strip()
    unit = next((unit for unit in UNITS if unit.lower() == text.strip()[len(number) :].strip().lower()), None)
    try:
        size = float(number) * UNITS[unit or ""]
    except (ValueError, KeyError):
        size = 0.0
    if not 1 <= size < 1 << 60:
        raise DitQuantError(f"{text!r} is no size. Give a number and one of {', '.join(UNITS)}, such as 4GiB.")
    return int(size)


def gib(size: int) -> str:
    """Show bytes."""
    return f"{size / UNITS['GiB']:.2f} GiB"


@dataclass(frozen=True)
class Budget:
    """What a limit is spent on, in bytes: what is in memory from the start, a block, and fitting its layers."""

    limit: int
    resident: int
    block: int
    fitting: int

    @property
    def left(self) -> int:
        """What is left for recorded calls and for what a block computes."""
        return self.limit - self.resident - self.block - self.fitting

    def check(self) -> None:
        """Refuse a limit that a single block does not fit into."""
        if self.left < RECORDED_LEAST:
            least = self.limit - self.left + RECORDED_LEAST
            raise DitQuantError(f"a limit of {gib(self.limit)} is too small: {self}. Give at least {gib(least)}.")

    def __str__(self) -> str:
        return (
            f"{gib(self.resident)} for libraries and what lies outside of the blocks, {gib(self.block)} for the "
            f"largest block, {gib(self.fitting)} to fit its layers"
        )


def foresee_memory(
    modules: Iterable[nn.Module], transformers: Iterable[nn.Module], recipe: Recipe, data: bool, limit: int
) -> Budget:
    """Foresee what a limit is spent on; `modules` are all that lie on disk, `data` says whether they are calibrated."""
    block = max((_bytes(block) for module in modules for block in listed(module)), default=0)
    fitting = max(_fitting(model, match(model, recipe), data) for model in transformers)
    return Budget(limit, resident_bytes(), block, fitting)


def _fitting(model: nn.Module, matched: Sequence[tuple[Layer, Rule]], data: bool) -> int:
    statistics = [
        sum(
            statistics_bytes(layer, rule.quantizer in NEEDS_GRAM)
            for layer, rule in matched
            if layer.name.startswith(f"{path}.")
        )
        for path, _ in walk_blocks(model, family_of(model))
    ]
    largest = max(layer.parameters for layer, _ in matched)
    return 4 * FIT_COPIES * largest + data * max(statistics, default=0)


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def give_back_what_is_freed() -> None:
    """Let glibc map every large block of memory by itself, so that the system has it back as soon as it is freed.

    Its own threshold rises with what was freed, up to 32 MiB: weights then lie between small objects that stay, and the
    process grows by 1.6 bytes a weight that it quantized. Other systems keep their ways.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def resident_bytes() -> int:
    """Memory of this process; where the system does not tell, the most that it ever was."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
