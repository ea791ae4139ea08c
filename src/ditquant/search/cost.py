"""What a plan costs in operations on bits: products, rescaling of groups, rotations, and bytes of scales.

    Σ tokens N K b_w b_a  +  576 Σ tokens N K / g  +  576 Σ tokens K r  +  8 · bytes of scales and zero points

with r the multiplications of a rotation for one channel. Shapes are the real ones: `measure_tokens` counts the rows
that reach every layer when the pipeline paints. With a table of latencies the cost is their sum in its place.
Differs from the paper, whose budget is a mean group size, which nearly every random plan meets.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace

from torch import Tensor, nn

from ditquant.calibration.collect import watched
from ditquant.errors import DitQuantError
from ditquant.formats import layout
from ditquant.models import Layer
from ditquant.rule import Rule
from ditquant.search.space import Gene, Genome, Space
from ditquant.transforms.hadamard_matrix import factors

FLOAT = 24 * 24  # a multiplication of two float32 mantissas
BYTE = 8  # a byte of metadata is read once for a call
_ONE_A_CHANNEL = ("smooth", "permute")

Latency = Callable[[str, Gene], float]


@dataclass(frozen=True)
class Cost:
    """Bit operations, rescalings and rotations (multiplications of float32) of one sample's call of the model, bytes of
    scales and zero points, and milliseconds where there is a table; `total` is what is compared."""

    bit_operations: float
    rescalings: float
    rotations: float
    metadata_bytes: float
    latency_ms: float
    total: float


@dataclass(frozen=True)
class CostModel:
    """Rows a sample by layer, and the milliseconds of a layer with a gene where they are measured."""

    tokens: Mapping[str, float]
    latency: Latency | None = None

    @property
    def unit(self) -> str:
        """What the total counts."""
        return "bit operations" if self.latency is None else "ms"

    def layer(self, space: Space, name: str, gene: Gene) -> Cost:
        """Return what a layer costs with a gene."""
        layer, rule = space.searched[name][0], space.rule(name, gene)
        products = self.tokens[name] * layer.out_features * layer.in_features
        operations = products * rule.weight.bits * rule.activation.bits
        rescalings, metadata = products / gene.groups, metadata_bytes(layer, rule)
        rotations = self.tokens[name] * layer.in_features * _multiplications(rule, layer.in_features)
        if self.latency is None:
            total, latency = operations + FLOAT * (rescalings + rotations) + BYTE * metadata, 0.0
        else:
            total = latency = self.latency(name, gene)
        return Cost(operations, rescalings, rotations, metadata, latency, total)

    def of(self, space: Space, genome: Genome) -> Cost:
        """Return the cost of a genome; layers that are not searched cost the same in all and are left out."""
        parts = [astuple(self.layer(space, name, gene)) for name, gene in genome.items()]
        return Cost(*(math.fsum(part) for part in zip(*parts, strict=True)))

    def cheapest(self, space: Space) -> Genome:
        """Return the genome of least total."""
        return {n: min(space.offers(n), key=lambda g: self.layer(space, n, g).total) for n in space.searched}

    def budget(self, space: Space, text: str) -> float:
        """Read a budget: `g128`, the cost of that group size in every layer, or a number in the total's unit.

        Raises:
            DitQuantError: neither of them, or less than the smallest total that can be reached.
        """
        least = self.of(space, self.cheapest(space)).total
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
            raise DitQuantError(f"budget {text} cannot be reached: the smallest is {least:.6g} {self.unit}. Raise it.")
        return value


def _everywhere(space: Space, group: int) -> Genome:
    """Return the genome of a group size that may be none of the choices."""
    common = math.gcd(*(layer.in_features for layer, _ in space.searched.values()))
    if group < 1 or common % group:
        divisors = ", ".join(f"g{d}" for d in range(8, common + 1) if common % d == 0)
        raise DitQuantError(f"budget 'g{group}': {group} does not divide every layer's width. Allowed: {divisors}.")
    return {name: replace(gene, groups=group) for name, gene in space.uniform(None).items()}


def _multiplications(rule: Rule, width: int) -> int:
    """Return what the transforms multiply for one channel; every rotation is counted as one of the full width."""
    return sum(1 if t.kind in _ONE_A_CHANNEL else sum(factors(width)) for t in rule.transforms)


def metadata_bytes(layer: Layer, rule: Rule) -> int:
    """Return the bytes of a layer's scales and zero points, or code books."""
    stored = layout(rule.weight, layer.out_features, layer.in_features)
    return sum(math.prod(shape) * dtype.itemsize for name, (shape, dtype) in stored.items() if name != "codes")


def measure_tokens(
    modules: Mapping[str, nn.Module],
    samples: int,
    run: Callable[[], object],
    part_of: Callable[[str], str] = lambda name: "",
) -> dict[str, float]:
    """Call `run`, which paints `samples`, and return the rows a sample that reach every layer in a call of the model.

    Of models that take turns, `part_of` a layer, each counts for its share of the calls.

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
    most: dict[str, int] = {}
    for name, count in calls.items():
        most[part_of(name)] = max(count, most.get(part_of(name), 0))
    return {name: rows[name] / sum(most.values()) / samples for name in modules}
