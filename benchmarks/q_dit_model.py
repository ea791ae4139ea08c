"""The model that `q_dit.py` quantizes again and again, its samples, and two defects of other implementations.

Products are computed in bfloat16 from dequantized weights and activations, the rest of the model in float32: on a CPU
twice as fast as the packed layers, and `products alone`, which quantizes nothing, shows what it adds to an error.
"""

import copy
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from unittest import mock

import numpy as np
import torch
from q_dit_rows import BLOCK, FULL, PRODUCTS, Row
from torch import Tensor, nn
from torch.nn import functional as F

from ditquant import sources
from ditquant.calibration import run_prompts
from ditquant.calibration.collect import watched
from ditquant.engine import match
from ditquant.evaluation.digits import Judge, class_accuracy
from ditquant.evaluation.generate import Generated, generate
from ditquant.formats import PackedWeight
from ditquant.kernels.activation import fake_quantize
from ditquant.nn import set_module
from ditquant.quantizers import affine_fit
from ditquant.quantizers.gptq import gptq
from ditquant.recipe import Recipe
from ditquant.search import LayerCache, Space, see_inputs
from ditquant.search.model import model_digest
from ditquant.specs import ActSpec, WeightSpec

MODEL = "dit-digits"
FIRST_SEED = 2_000_000
BATCH, CLASSES = 20, 10
torch._dynamo.config.recompile_limit = 256  # one graph for each group size and width


def clamped(grouped: Tensor, spec, ratio: Tensor) -> dict[str, Tensor]:
    """Range from minimum to maximum, and a zero point that is clamped into the codes."""
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = (high - low) / (2**spec.bits - 1)
    zero = torch.round(-low / torch.where(scale > 0, scale, 1)).clamp(0, 2**spec.bits - 1)
    return {"scale": scale, "zero_point": zero.to(torch.uint8)}


def stale(weight: Tensor, factor, width: int, block_size: int, rounding) -> Tensor:
    """Compensate as GPTQ does, but enter a group with the weights that its block of 128 columns began with."""
    channels, share = factor.channels, factor.share()
    columns = weight.T[channels]
    codes = torch.empty(columns.shape, dtype=torch.uint8)
    for start in range(0, len(columns), BLOCK):
        end = min(start + BLOCK, len(columns))
        before, errors = columns.clone(), torch.empty_like(columns[start:end])
        for k in range(start, end):
            if k % width == 0:
                group = channels[k : k + width]
                rounding.enter(int(group[0]) // width, before[k : k + width][group.argsort()])
            codes[channels[k]], rounded = rounding.round(columns[k])
            errors[k - start] = columns[k] - rounded
            columns[k + 1 : end].addcmul_(share[k, k + 1 : end, None], errors[k - start], value=-1)
        columns[end:].addmm_(share[start:end, end:].T, errors, alpha=-1)
    return codes.T.contiguous()


def defect(name: str) -> ExitStack:
    """Put a defect in for a while."""
    stack = ExitStack()
    if name == "clamped":
        stack.enter_context(mock.patch.object(affine_fit, "_params", clamped))
    elif name == "stale":
        stack.enter_context(mock.patch.object(sys.modules["ditquant.quantizers.gptq"], "_compensate", stale))
    return stack


class Product(nn.Module):
    """A linear layer in bfloat16 of what `quantize` makes of its input."""

    def __init__(self, weight: Tensor, bias: Tensor | None, quantize: Callable[[Tensor], Tensor]):
        super().__init__()
        self.weight, self.quantize = nn.Parameter(weight.bfloat16(), requires_grad=False), quantize
        self.bias = None if bias is None else nn.Parameter(bias.detach().bfloat16(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.quantize(x), self.weight, self.bias).to(x.dtype)


@cache
def dynamic(spec: ActSpec | None) -> Callable[[Tensor], Tensor]:
    """Return what quantizes an input on line, compiled: it is made of ten passes otherwise."""
    if spec is None:
        return Tensor.bfloat16
    return torch.compile(lambda x: fake_quantize(x, spec).bfloat16(), dynamic=False)


def static(low: Tensor, high: Tensor, spec: ActSpec) -> Callable[[Tensor], Tensor]:
    """Return what quantizes an input with ranges seen in calibration, one a group (one of all without groups)."""
    group = spec.group_size or len(low)
    low, high = low.unflatten(0, (-1, group)).amin(1), high.unflatten(0, (-1, group)).amax(1)
    scale = (high.clamp(min=0) - low.clamp(max=0)) / (2**spec.bits - 1)
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny).repeat_interleave(group)
    zero = torch.round(-low.clamp(max=0).repeat_interleave(group) / scale)
    return lambda x: _static(x, scale, zero, 2**spec.bits - 1)


@torch.compile(dynamic=False)
def _static(x: Tensor, scale: Tensor, zero: Tensor, largest: int) -> Tensor:
    return ((torch.round(x / scale) + zero).clamp(0, largest).sub(zero) * scale).bfloat16()


class Bench:
    """The pipeline, and what GPTQ and static activations need to have seen: ten classes in full precision."""

    def __init__(self, steps: int, guidance: float):
        self.settings = {"steps": steps, "guidance": guidance}
        self.pipeline = sources.load_pipeline(MODEL, torch.float32)
        self.full = self.pipeline.transformer
        self.judge = Judge.load()

    def digest(self) -> str:
        """Return what tells these weights from others."""
        return model_digest(self.pipeline)

    @property
    def stats(self):
        """Statistics of the layers' inputs, made when they are asked for."""
        return self._seen[0]

    @property
    def ranges(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Minimum and maximum of every channel that enters a layer."""
        return self._seen[1]

    def quantized(self, row: Row) -> nn.Module:
        """Return a copy of the model with a row's layers; full precision is the model itself."""
        if row == FULL:
            return self.full
        model = copy.deepcopy(self.full)
        rules = Recipe.load("qdit-w4a8").rules if row == PRODUCTS else tuple(row.rules())
        matched = match(self.full, Recipe("benchmark", rules))
        with defect(row.defect):
            cache_ = LayerCache(self.full, Space({}, {layer.name: (layer, r) for layer, r in matched}, {}), self.stats)
            for layer, rule in matched:
                made = self.full.get_submodule(layer.name) if row == PRODUCTS else cache_.get(layer.name, None)
                spec = None if row == PRODUCTS else rule.activation
                quantize = static(*self.ranges[layer.name], spec) if row.static and spec else dynamic(spec)
                weight = made.weight if row == PRODUCTS else made.packed().dequantize()
                for alias in (layer.name, *layer.aliases):
                    set_module(model, alias, Product(weight.detach(), made.bias, quantize))
        return model

    def stale_layers(self, bits: int, group: int) -> float:
        """Return how much error stale groups add to the layers' outputs: the geometric mean of ratios, less one."""
        spec, logs = WeightSpec(bits, "affine", group, False), []
        for name, stats in self.stats.items():
            weight = self.full.get_submodule(name).weight.detach().float()
            if stats.gram is None or weight.shape[1] % group:
                continue
            fresh = gptq(weight, spec, stats)
            with defect("stale"):
                old = gptq(weight, spec, stats)
            ratio = _output_error(old, weight, stats.gram) / _output_error(fresh, weight, stats.gram)
            logs.append(math.log(ratio))
        return math.expm1(sum(logs) / len(logs))

    def paint(self, model: nn.Module, first: int, count: int) -> Generated:
        """Paint samples `first` and on; sample i has class i mod 10 and the seed 2,000,000 + i."""
        labels = [i % CLASSES for i in range(first, first + count)]
        self.pipeline.transformer = model
        try:
            options = self.settings | {"batch_size": BATCH, "progress": False}
            return generate(self.pipeline, labels, seeds=FIRST_SEED + first, **options)
        finally:
            self.pipeline.transformer = self.full

    def see(self, made: Generated, first: int) -> dict[str, np.ndarray]:
        """Return features and whether a picture shows its class."""
        seen = self.judge.see(made.images)
        labels = [i % CLASSES for i in range(first, first + len(made.images))]
        right = np.array(class_accuracy(seen.logits, labels), np.uint8)
        return {"features": seen.features.numpy().astype(np.float32), "right": right}

    @property
    @cache  # noqa: B019 - one bench a process
    def _seen(self):
        matched = match(self.full, Recipe.load("qdit-gptq-w4a8"))
        modules = {layer.name: self.full.get_submodule(layer.name) for layer, _ in matched}
        ranges: dict[str, tuple[Tensor, Tensor]] = {}

        def widen(name: str, x: Tensor) -> None:
            rows = x.detach().flatten(0, -2)
            low, high = ranges.get(name, (rows.amin(0), rows.amax(0)))
            ranges[name] = torch.minimum(low, rows.amin(0)), torch.maximum(high, rows.amax(0))

        def run() -> None:
            with watched(modules, widen):
                run_prompts(self.pipeline, range(CLASSES), 0, self.settings)

        return see_inputs(self.full, matched, run), ranges


def _output_error(packed: PackedWeight, weight: Tensor, gram: Tensor) -> float:
    lost = (packed.dequantize() - weight).double()
    return float((lost @ gram.double() * lost).sum())


def errors(made: Generated, truth: np.ndarray) -> np.ndarray:
    """Return |z - z_full|² / |z_full|² of final latents z."""
    found, full = made.latents.double().flatten(1).numpy(), truth.astype(np.float64)
    return np.square(found - full).sum(1) / np.square(full).sum(1)
