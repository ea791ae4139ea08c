"""Quantized layers by (layer, gene): made once, whatever candidates they are in."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ditquant.calibration import collect
from ditquant.calibration.decoded import decoded_once
from ditquant.engine import quantize_layer, uses_data
from ditquant.errors import DitQuantError
from ditquant.models import Layer
from ditquant.nn import QuantLinear, set_module
from ditquant.quantizers import NEEDS_GRAM, reads_curvature
from ditquant.rule import Rule
from ditquant.search.space import Gene, Genome, Space
from ditquant.stats import LayerStats


class LayerCache:
    """Makes the layers of a model from its weights and the statistics of its full-precision inputs.

    So a quantized layer depends on its own gene alone, and is equal to the bit in every candidate and when deployed.
    """

    def __init__(self, model: nn.Module, space: Space, stats: Mapping[str, LayerStats], seed: int = 0):
        self.space, self.stats, self.seed = space, stats, seed
        self.layers = {name: layer for name, (layer, _) in {**space.fixed, **space.searched}.items()}
        self.linears = {name: model.get_submodule(name) for name in self.layers}
        self.model = model
        self.made: dict[tuple[str, Gene | None], QuantLinear] = {}

    def get(self, name: str, gene: Gene | None) -> QuantLinear:
        """Return a layer with a gene; None for one that is not searched."""
        if (name, gene) not in self.made:
            rule = self.space.fixed[name][1] if gene is None else self.space.rule(name, gene)
            self.made[name, gene] = quantize_layer(self.linears[name], self.layers[name], rule, self.stats, self.seed)
        return self.made[name, gene]

    def candidate(self, genome: Genome) -> dict[str, QuantLinear]:
        """Return all quantized layers of a genome."""
        return {name: self.get(name, genome.get(name)) for name in self.layers}

    @contextmanager
    def in_place(self, made: Mapping[str, QuantLinear]) -> Iterator[None]:
        """Give the model quantized layers for a while; weights are decoded once."""
        try:
            self.put(made)
            with decoded_once(made.values()):
                yield
        finally:
            self.put(self.linears)

    def put(self, modules: Mapping[str, nn.Module]) -> None:
        """Put modules in the places of the layers."""
        for name, module in modules.items():
            for alias in (name, *self.layers[name].aliases):
                set_module(self.model, alias, module)


@torch.no_grad()
def see_inputs(
    model: nn.Module,
    matched: Sequence[tuple[Layer, Rule]],
    run: Callable[[], object],
    seed: int = 0,
    others: Iterable[Rule] = (),
) -> dict[str, LayerStats]:
    """Return the statistics of the inputs of a full-precision model: of all layers, where one rule asks for them.

    `run` runs the model, and is called only then; `others` are further rules that may ask. A layer's sample is drawn
    by its place among all of them.

    Raises:
        DitQuantError: a rule that looks at the outputs' curvature, which is measured block by block.
    """
    if any(reads_curvature(rule.quantizer_options) for _, rule in matched):
        raise DitQuantError("option 'joint' fits layers block by block, so they are no genes. Leave it out.")
    if not any(uses_data(rule) for rule in (*(rule for _, rule in matched), *others)):
        return {}
    modules = {layer.name: model.get_submodule(layer.name) for layer, _ in matched}
    grams = [layer.name for layer, rule in matched if rule.quantizer in NEEDS_GRAM]
    return collect(modules, run, seed=seed, grams=grams)
