"""The doctor: how hard every layer of a full-precision model is to quantize, and which of them are ill."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditquant.calibration import run_prompts
from ditquant.engine import match
from ditquant.errors import of_layer
from ditquant.evaluation.origin import Trouble
from ditquant.evaluation.watch import BEHIND, Watched, watching
from ditquant.formats import FORMATS
from ditquant.integrations.diffusers import transformers_of
from ditquant.models import find_linears
from ditquant.progress import bar as progress_bar
from ditquant.quantizers import QUANTIZERS
from ditquant.recipe import Recipe
from ditquant.rule import Rule
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats
from ditquant.transforms import FITTERS, describe
from ditquant.transforms.fake_quantize import sqnr_db

BITS = (3, 4)
OUTPUTS = 256  # rows of a weight that stand for it where formats are compared
ROTATIONS = ("hadamard", "fast_dual_rotation")
ADAPTIVE = "adaptive_rotation"
FITTED_BY = {"affine": "rtn"}  # a quantizer has the name of its format otherwise


@dataclass(frozen=True)
class Diagnosis:
    """One layer; what cannot be measured is missing. SQNR is that of the layer's output, in decibels.

    `rms` is J of LRQ-DiT. `channel_ratio` is the largest channel maximum over the median one. Kurtosis is 3 for a
    normal distribution. `formats` has weights in each format and floating-point inputs, without transforms;
    `none_db`, `mild_db` and `salient_db` have both plainly quantized behind no, the Hadamard and the dual rotation,
    `by_metric` and `by_error` say which rotation the rule of J and that of the output error choose.
    `channels` are the channel maxima of the sampled inputs under each rotation, for plots.
    """

    name: str
    role: str
    trouble: str
    rms: float | None = None
    absmax: float | None = None
    channel_ratio: float | None = None
    input_kurtosis: float | None = None
    weight_kurtosis: float | None = None
    formats: Mapping[str, float] = field(default_factory=dict)
    none_db: float | None = None
    mild_db: float | None = None
    salient_db: float | None = None
    by_metric: str = ""
    by_error: str = ""
    channels: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data, without the channels."""
        return {key: value for key, value in asdict(self).items() if key != "channels"}


@dataclass(frozen=True)
class Examination:
    """All layers, what is wrong outside of them, and the name of what NaN and infinite values begin with."""

    layers: list[Diagnosis]
    outside: list[Trouble] = field(default_factory=list)
    origin: str = ""

    def troubles(self) -> list[Trouble]:
        """Return what is wrong, the origin first; layers that only receive NaN or infinite values are counted."""
        ill = [Trouble(one.name, one.trouble) for one in self.layers if one.trouble and one.trouble != BEHIND]
        found = sorted([*self.outside, *ill], key=lambda trouble: trouble.name != self.origin)
        behind = sum(one.trouble == BEHIND for one in self.layers)
        if behind:
            count, whose = ("1 layer", "its") if behind == 1 else (f"{behind} layers", "their")
            found.insert(1, Trouble(f"{count} behind it", f"{whose} input is NaN or infinite"))
        return found


@torch.no_grad()
def examine(
    pipeline: Any,
    prompts: Sequence[str | int],
    recipe: Recipe | None = None,
    settings: Mapping[str, float | None] | None = None,
    seed: int = 0,
) -> Examination:
    """Run prompts, and examine all layers that can be quantized, or those that a recipe quantizes.

    With a recipe, rotations are judged behind the transforms that it puts before its own. Where values are NaN or
    infinite, what is said of them is that of the first such call of the model: the later ones start from its result.

    Raises:
        DitQuantError: a pipeline that is quantized, a recipe that does not fit, prompts that it does not take.
    """
    parts = transformers_of(pipeline)
    models = parts if len(parts) > 1 else {"": next(iter(parts.values()))}
    layers: dict[str, tuple[nn.Linear, str, Rule | None]] = {}
    for component, part in models.items():
        for name, (role, rule) in _rules(part, recipe).items():
            layers[f"{component}.{name}" if component else name] = (part.get_submodule(name), role, rule)
    with watching({name: linear for name, (linear, _, _) in layers.items()}, models) as seen:
        run_prompts(pipeline, prompts, seed, settings)
    found = [diagnose(name, *layers[name], seen) for name in progress_bar(layers, desc="examining", unit="layer")]
    return Examination(found, seen.outside(), "" if seen.trace.origin is None else seen.trace.origin.name)


def _rules(part: nn.Module, recipe: Recipe | None) -> dict[str, tuple[str, Rule | None]]:
    if recipe is None:
        return {layer.name: (layer.role, None) for layer in find_linears(part).layers}
    return {layer.name: (layer.role, rule) for layer, rule in match(part, recipe)}


def diagnose(name: str, linear: nn.Linear, role: str, rule: Rule | None, seen: Watched) -> Diagnosis:
    """Examine one layer by what was seen of it."""
    found = partial(Diagnosis, name, role, seen.trouble(name))
    weight, stats = linear.weight.detach().float().cpu(), seen.stats.get(name)
    if stats is None or not bool(torch.isfinite(weight).all()):
        return found()
    with of_layer(name):
        turned, inputs, options = _before_rotation(weight, stats, rule)
        report = describe(turned, inputs, **options)
        median = float(stats.absmax.median())
        return found(
            rms=stats.rms,
            absmax=float(stats.absmax.max()),
            channel_ratio=float(stats.absmax.max()) / median if median else None,
            input_kurtosis=kurtosis(stats.sample),
            weight_kurtosis=kurtosis(weight),
            formats={f"{kind} {bits}": format_sqnr_db(weight, stats, kind, bits) for kind in FORMATS for bits in BITS},
            **{key: report[key] for key in ("none_db", "mild_db", "salient_db", "by_metric", "by_error")},
            channels=_channels(turned, inputs),
        )


def kurtosis(values: Float[Tensor, "..."]) -> float | None:
    """Return E[(x - mean)^4] / variance^2 over all values; None if they are all equal."""
    centred = values.double() - values.double().mean()
    variance = float(centred.square().mean())
    return float(centred.pow(4).mean()) / variance**2 if variance else None


def format_sqnr_db(weight: Float[Tensor, "N K"], stats: LayerStats, kind: str, bits: int) -> float:
    """Return the SQNR of the output on the sampled inputs, of at most 256 rows of the weight in a format."""
    rows = weight[:: -(-len(weight) // OUTPUTS)]
    packed = QUANTIZERS[FITTED_BY.get(kind, kind)](rows, WeightSpec(bits, kind), stats)
    return sqnr_db(stats.sample @ rows.T, stats.sample @ packed.dequantize().T)


def _before_rotation(weight: Tensor, stats: LayerStats, rule: Rule | None) -> tuple[Tensor, LayerStats, dict[str, Any]]:
    """Apply the rule's transforms up to its rotation; return the options of that rotation if it is adaptive."""
    for spec in () if rule is None else rule.transforms:
        if spec.kind == ADAPTIVE:
            return weight, stats, {key: value for key, value in spec.options.items() if key != "select"}
        if "rotation" in spec.kind or spec.kind in ROTATIONS:
            break
        transform = FITTERS[spec.kind](weight, stats, **spec.options)
        weight, stats = transform.absorb(weight), stats.transformed(transform)
    return weight, stats, {}


def _channels(weight: Tensor, stats: LayerStats) -> dict[str, Tensor]:
    rotated = {kind: FITTERS[kind](weight, stats)(stats.sample) for kind in ROTATIONS}
    return {kind: x.abs().amax(0) for kind, x in {"none": stats.sample, **rotated}.items()}
