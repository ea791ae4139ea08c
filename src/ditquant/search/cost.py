"""What a plan costs in operations on bits: Σ tokens N K b_w b_a, c tokens N K / g to rescale, d a byte of metadata.

Shapes are the real ones: `measure_tokens` counts the rows that reach every layer when the pipeline paints.
Differs from the paper, whose budget is a mean group size, which nearly every random plan meets.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ditquant.calibration.collect import watched
from ditquant.errors import DitQuantError
from ditquant.formats import layout
from ditquant.models import Layer
from ditquant.rule import Rule
from ditquant.search.space import Genome, Space


@dataclass(frozen=True)
class Cost:
    """Bit operations and rescalings of one sample's call of the model, and bytes of scales and zero points."""

    bit_operations: float
    rescalings: float
    metadata_bytes: float
    total: float


@dataclass(frozen=True)
class CostModel:
    """Rows a sample by layer, and the weights of the parts of the total.

    A rescaling counts as a multiplication of two float32 mantissas, 24 x 24 bits; a byte of metadata as its 8 bits,
    read once for the call.
    """

    tokens: Mapping[str, float]
    rescaling: float = 24 * 24
    byte: float = 8

    def of(self, space: Space, genome: Genome) -> Cost:
        """Return the cost of a genome; layers that are not searched cost the same in all and are left out."""
        operations = rescalings = metadata = 0.0
        for name, gene in genome.items():
            layer, rule = space.searched[name][0], space.rule(name, gene)
            products = self.tokens[name] * layer.out_features * layer.in_features
            operations += products * rule.weight.bits * rule.activation.bits
            rescalings += products / gene
            metadata += metadata_bytes(layer, rule)
        total = operations + self.rescaling * rescalings + self.byte * metadata
        return Cost(operations, rescalings, metadata, total)

    def smallest(self, space: Space) -> float:
        """Return the least total that a genome can have."""
        return self.of(space, space.uniform(None)).total

    def budget(self, space: Space, text: str) -> float:
        """Read a budget: `g128`, the cost of that group size in every layer, or a number of bit operations.

        Raises:
            DitQuantError: neither of them, or less than the smallest total that can be reached.
        """
        least = self.smallest(space)
        if found := re.fullmatch(r"g(\d+)", text):
            return self.of(space, _everywhere(space, int(found[1]))).total
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DitQuantError(
                f"budget {text!r} is none. Write g128, the cost of that group size everywhere, or a number."
            )
        if value < least:
            raise DitQuantError(f"budget {text} cannot be reached: the smallest is {least:.6g} (full rows). Raise it.")
        return value


def _everywhere(space: Space, group: int) -> Genome:
    """Return the genome of a group size that may be none of the choices."""
    common = math.gcd(*(layer.in_features for layer, _ in space.searched.values()))
    if group < 1 or common % group:
        divisors = ", ".join(f"g{d}" for d in range(8, common + 1) if common % d == 0)
        raise DitQuantError(f"budget 'g{group}': {group} does not divide every layer's width. Allowed: {divisors}.")
    return dict.fromkeys(space.searched, group)


def metadata_bytes(layer: Layer, rule: Rule) -> int:
    """Return the bytes of a layer's scales and zero points."""
    stored = layout(rule.weight, layer.out_features, layer.in_features)
    return sum(math.prod(shape) * dtype.itemsize for name, (shape, dtype) in stored.items() if name != "codes")


def measure_tokens(modules: Mapping[str, nn.Module], samples: int, run: Callable[[], object]) -> dict[str, float]:
    """Call `run`, which paints `samples`, and return the rows a sample and call that reached every layer.

    Raises:
        DitQuantError: a layer that nothing reached.
    """
    rows, calls = dict.fromkeys(modules, 0), dict.fromkeys(modules, 0)

    def see(name: str, x: Tensor) -> None:
        rows[name] += x.numel() // x.shape[-1]
        calls[name] += 1

    with watched(modules, see):
        run()
    if missed := [name for name, count in calls.items() if not count]:
        raise DitQuantError(f"nothing reaches {missed[0]!r} when the model paints. Leave it out of the recipe.")
    return {name: rows[name] / calls[name] / samples for name in modules}
