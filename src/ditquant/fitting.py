"""Fit one layer: its transforms, its codes, the clip of its input; the output's error decides what a rule leaves open.

The error is that of the layer's output on the sample of its inputs, with weight and input quantized as they will be.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from ditquant.formats import PackedWeight
from ditquant.kernels import fake_quantize
from ditquant.nn import LowRank, QuantLinear
from ditquant.quantizers import NEEDS_GRAM, QUANTIZERS
from ditquant.quantizers.low_rank import TURNS, fit_low_rank, refit_low_rank
from ditquant.rule import Rule
from ditquant.specs import ActSpec, LayerPlan, TransformSpec
from ditquant.stats import LayerStats
from ditquant.transforms.base import Transform
from ditquant.transforms.fitters import FITTERS, needs_data, takes_seed

TRIAL_ROWS = 64  # outputs on which transforms are tried
TRIAL_TURNS = 1
MARGIN = 0.9  # of the error with the rule's own transforms: what is tried on some outputs is not sure of less
PLAIN = {"affine": "rtn", "twin_log": "twin_log"}


@dataclass(frozen=True)
class Basis:
    """Fitted transforms, what they were fitted by, and the weight and the statistics behind them."""

    chain: tuple[TransformSpec, ...]
    transforms: tuple[Transform, ...]
    weight: Float[Tensor, "N K"]
    stats: LayerStats | None

    def rows(self, step: int) -> "Basis":
        """Return it for every `step`-th output."""
        return replace(self, weight=self.weight[::step], stats=self.stats.without_curvature())


@dataclass(frozen=True)
class Made:
    """A quantized weight with its low-rank part."""

    packed: PackedWeight
    low_rank: LowRank | None

    def noise(self, basis: Basis, activation: ActSpec | None) -> float:
        """Return the squared error of the output on the sample, in the metric of its curvature where that is known."""
        x = basis.stats.sample
        rounded = x if activation is None else fake_quantize(x, activation)
        error = rounded @ self.packed.dequantize().T - x @ basis.weight.T
        if self.low_rank is not None:
            error += self.low_rank(x)
        curvature = basis.stats.curvature
        return float((error * (error if curvature is None else error @ curvature)).sum())


def fit_layer(linear: nn.Linear, name: str, rule: Rule, stats: LayerStats | None, seed: int = 0) -> QuantLinear:
    """Return the quantized layer; `stats` None leaves out what needs data, and chooses nothing."""
    weight = linear.weight.detach().float().cpu()
    seed += zlib.crc32(name.encode())
    basis = choose_basis(weight, rule, stats, seed)
    made = quantize_weight(basis, rule)
    activation = choose_clip(made, basis, rule)[0]
    plan = LayerPlan(rule.weight, activation, tuple(t.spec() for t in basis.transforms), rule.rank)
    return QuantLinear.from_linear(linear, made.packed, basis.transforms, plan, made.low_rank)


def output_noise(layer: QuantLinear, linear: nn.Linear, stats: LayerStats) -> float:
    """Return the mean squared error of a token's output, on the sample and in the metric of the output's curvature."""
    x = stats.sample.to(linear.weight)
    error = (layer(x) - linear(x)).float().cpu()
    felt = error if stats.curvature is None else error @ stats.curvature
    return float((error * felt).sum() / max(len(x), 1))


def choose_basis(weight: Float[Tensor, "N K"], rule: Rule, stats: LayerStats | None, seed: int) -> Basis:
    """Return the transforms of least error on some of the outputs; the rule's own, unless others are clearly better."""
    if stats is None or not rule.choose.transforms:
        return fit_transforms(weight, rule.transforms, stats, seed)
    step = -(-len(weight) // TRIAL_ROWS)

    def error(basis: Basis) -> float:
        some = basis.rows(step)
        return choose_clip(quantize_weight(some, rule, TRIAL_TURNS), some, rule)[1]

    own, *others = (fit_transforms(weight, chain, stats, seed) for chain in rule.chains)
    best, least = own, MARGIN * error(own)
    for basis in others:
        if (found := error(basis)) < least:
            best, least = basis, found
    return best


def fit_transforms(
    weight: Float[Tensor, "N K"], chain: Sequence[TransformSpec], stats: LayerStats | None, seed: int
) -> Basis:
    """Fit transforms one after the other; without data, those that can do without."""
    transforms = []
    for spec in chain:
        if stats is None and needs_data(spec.kind):
            continue
        options = {"seed": seed} if takes_seed(spec.kind) else {}
        transform = FITTERS[spec.kind](weight, stats, **options | dict(spec.options))
        weight = transform.absorb(weight)
        stats = None if stats is None else stats.transformed(transform)
        transforms.append(transform)
    return Basis(tuple(chain), tuple(transforms), weight, stats)


def quantize_weight(basis: Basis, rule: Rule, turns: int = TURNS) -> Made:
    """Choose codes, and factors where the rule has a rank.

    The factors are refined by turns with the quantizer. One that compensates its errors does so as well on any rest:
    how much is left depends on how large the rest is, so that the factors first take what is largest, whichever inputs
    it meets, and are fitted once more to what the codes then left.
    """

    def quantizer(weight: Tensor) -> PackedWeight:
        return QUANTIZERS[rule.quantizer](weight, rule.weight, basis.stats, **rule.quantizer_options)

    def plain(weight: Tensor) -> PackedWeight:
        return QUANTIZERS[PLAIN[rule.weight.format]](weight, rule.weight)

    if not rule.rank:
        return Made(quantizer(basis.weight), None)
    rank = min(rule.rank, len(basis.weight))
    if rule.quantizer not in NEEDS_GRAM:
        packed, *factors = fit_low_rank(basis.weight, rank, quantizer, basis.stats, turns)
        return Made(packed, LowRank(*factors))
    _, *factors = fit_low_rank(basis.weight, rank, plain, None, turns)
    packed = quantizer(basis.weight - LowRank(*factors).product())
    return Made(packed, LowRank(*refit_low_rank(basis.weight - packed.dequantize(), tuple(factors), basis.stats)))


def choose_clip(made: Made, basis: Basis, rule: Rule) -> tuple[ActSpec | None, float]:
    """Return the rule's activation with the clip ratio of least error, and that error (0 where none is measured)."""
    spec = rule.activation
    if basis.stats is None or not rule.choose:
        return spec, 0.0
    found = [spec] if spec is None else [replace(spec, clip=ratio) for ratio in rule.choose.clip or (spec.clip,)]
    errors = [made.noise(basis, candidate) for candidate in found]
    best = min(range(len(found)), key=errors.__getitem__)
    return found[best], errors[best]
