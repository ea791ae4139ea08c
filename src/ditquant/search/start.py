"""Candidates to begin with: where the latents feel a layer's error most for what it costs to lower it.

A layer's share of the error is its output's error on a sample of its inputs, times how much the latents feel such an
error: what they lose when this layer alone is quantized. Shares are added up, as errors of different layers are nearly
independent. The search starts from the best points of this estimate, and corrects it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ditquant import distributed
from ditquant.auto import Way, descend
from ditquant.fitting import output_noise
from ditquant.search.cost import CostModel
from ditquant.search.layers import LayerCache
from ditquant.search.score import Scorer, mean
from ditquant.search.space import Gene, Genome, Space
from ditquant.stats import LayerStats


@dataclass(frozen=True)
class _Offer(Way):
    """A gene as a way to store a layer: its cost stands for bytes."""

    gene: Gene | None = None


@torch.no_grad()
def felt(layers: LayerCache, scorer: Scorer, inputs: Mapping[str, LayerStats]) -> dict[str, float]:
    """Return the latents' error for a unit of every layer's output error: one painting a layer, shared by the ranks."""
    found: dict[str, float] = {}
    for name in distributed.mine(list(layers.space.searched)):
        made = layers.get(name, _middle(_plain(layers.space, name)))
        with layers.in_place({name: made}):
            error = mean(scorer.errors())
        noise = output_noise(made, layers.linears[name], inputs[name])
        found[name] = error / noise if noise > 0 else 0.0
    every = {name: value for part in distributed.gather(found) for name, value in part.items()}
    return {name: every[name] for name in layers.space.searched}


@torch.no_grad()
def starts(
    layers: LayerCache,
    costs: CostModel,
    felt_by: Mapping[str, float],
    inputs: Mapping[str, LayerStats],
    totals: Sequence[float],
) -> list[Genome]:
    """Return, for each of some totals, the genome of least estimated error that costs no more."""
    space = layers.space
    ways = {name: [_offer(layers, costs, felt_by, inputs, name, g) for g in _plain(space, name)] for name in felt_by}
    path = descend(ways)
    found: list[Genome] = []
    for total in totals:
        fitting = [step for step in path if math.fsum(way.size for way in step.values()) <= total]
        if fitting:
            genome = {name: way.gene for name, way in fitting[-1].items()}
            found += [genome] if genome not in found else []
    return found


def _offer(
    layers: LayerCache,
    costs: CostModel,
    felt_by: Mapping[str, float],
    inputs: Mapping[str, LayerStats],
    name: str,
    gene: Gene,
) -> _Offer:
    noise = output_noise(layers.get(name, gene), layers.linears[name], inputs[name])
    return _Offer(None, costs.layer(layers.space, name, gene).total, felt_by[name] * noise, gene=gene)


def _plain(space: Space, name: str) -> list[Gene]:
    """Return the genes of a layer that keep the recipe's rotation and format, which take long to fit."""
    own = space.own(name)
    return [gene for gene in space.offers(name) if (gene.rotation, gene.format) == (own.rotation, own.format)]


def _middle(offers: Sequence[Gene]) -> Gene:
    return offers[len(offers) // 2]
