"""Genes are divisors, cost is counted from real shapes, and what does not fit is answered with what does."""

import re

import pytest

from ditquant.engine import match
from ditquant.errors import DitQuantError
from ditquant.recipe import Recipe
from ditquant.search import CostModel, Scorer, Space, measure_tokens
from tests.search.built import CLASSES, tiny_dit_pipeline

WIDTH, HIDDEN, TOKENS = 128, 512, 16  # latents of 8 x 8 in patches of 2 x 2


@pytest.fixture(scope="module")
def pipeline():
    return tiny_dit_pipeline()


@pytest.fixture(scope="module")
def space(pipeline):
    return Space.of(match(pipeline.transformer, Recipe.load("qdit-w3a8")))


def test_genes_are_the_divisors_of_each_width(space):
    roles = {name: layer.role for name, (layer, _) in space.searched.items()}
    assert len(space.searched) == 2 * 6 and set(roles.values()).isdisjoint({"modulation", "embedding"})
    assert {layer.role for layer, _ in space.fixed.values()} == {"modulation", "embedding"}
    for name, sizes in space.choices.items():
        wide = roles[name] == "ffn_down"
        assert sizes == ((32, 64, 128, 512) if wide else (32, 64, 128))


def test_a_gene_sets_weight_and_activation_together(space):
    name = next(iter(space.searched))
    rule = space.rule(name, 32)
    assert rule.weight.group_size == rule.activation.group_size == 32
    assert (rule.target, rule.activation.granularity, rule.weight.bits) == (name, "group", 3)


def test_uniform_genomes(space):
    assert list(space.uniforms()) == ["g = 32", "g = 64", "g = 128", "full row"]
    assert set(space.uniform(None).values()) == {WIDTH, HIDDEN}
    assert space.uniform(512) is None


def test_tokens_are_those_that_reach_a_layer(pipeline, space):
    modules = {name: pipeline.transformer.get_submodule(name) for name in space.searched}
    scorer = Scorer(pipeline, CLASSES, 0, {"steps": 2, "guidance": 1.0})
    assert set(measure_tokens(modules, 2, scorer.see_truth).values()) == {TOKENS}
    guided = Scorer(pipeline, CLASSES, 0, {"steps": 2, "guidance": 2.0})
    assert set(measure_tokens(modules, 2, guided.see_truth).values()) == {2 * TOKENS}
    with pytest.raises(DitQuantError, match="nothing reaches 'transformer_blocks"):
        measure_tokens(modules, 2, lambda: None)


def test_the_cost_is_the_sum_that_is_written_down(space):
    model = CostModel(dict.fromkeys(space.searched, float(TOKENS)))
    cost = model.of(space, space.uniform(64))
    weights = 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN)
    assert cost.bit_operations == TOKENS * weights * 3 * 8
    assert cost.rescalings == TOKENS * weights / 64
    assert cost.metadata_bytes == weights / 64 * (4 + 1)  # a float32 scale and a zero point
    assert cost.total == cost.bit_operations + 576 * cost.rescalings + 8 * cost.metadata_bytes
    full = model.of(space, space.uniform(None))
    rows = 2 * (4 * WIDTH + HIDDEN + WIDTH)
    assert (full.metadata_bytes, full.rescalings) == (5 * rows, TOKENS * rows)


def test_a_mixed_genome_costs_what_its_layers_cost(space):
    model = CostModel(dict.fromkeys(space.searched, float(TOKENS)))
    coarse, fine = space.uniform(None), space.uniform(32)
    name = next(n for n in coarse if n.endswith("ff.net.2"))
    mixed = model.of(space, coarse | {name: 32}).total
    others = sum(model.of(space, coarse | {n: 32}).total - model.of(space, coarse).total for n in coarse if n != name)
    assert mixed + others == pytest.approx(model.of(space, fine).total)


def test_budgets(space):
    model = CostModel(dict.fromkeys(space.searched, float(TOKENS)))
    assert model.budget(space, "g64") == model.of(space, space.uniform(64)).total
    assert model.budget(space, "g16") > model.budget(space, "g32")  # though it is none of the choices
    assert model.budget(space, "1e12") == 1e12
    least = model.of(space, space.uniform(None)).total
    assert least == min(model.of(space, genome).total for genome in space.uniforms().values())
    with pytest.raises(DitQuantError, match=re.escape(f"cannot be reached: the smallest is {least:.6g} ")):
        model.budget(space, "10")
    with pytest.raises(DitQuantError, match=r"48 does not divide every layer's width. Allowed: g8, g16, .*g128\."):
        model.budget(space, "g48")
    for text in ("cheap", "g", "nan", "gx", "inf"):
        with pytest.raises(DitQuantError, match=f"budget '{text}' is none. Write g128"):
            model.budget(space, text)


def test_group_sizes_that_are_refused(pipeline):
    matched = match(pipeline.transformer, Recipe.load("qdit-w4a8"))
    assert Space.of(matched, [64]).choices["transformer_blocks.0.attn1.to_q"] == (64, 128)
    with pytest.raises(DitQuantError, match=r"group size 48 divides no layer's width. Divisors of 128: 8, 16, 32, 64,"):
        Space.of(matched, [64, 48])
    with pytest.raises(DitQuantError, match=r"group size 0 is not allowed\. Choose a positive integer"):
        Space.of(matched, [0])
    with pytest.raises(DitQuantError, match="quantizes no activation"):
        Space.of(match(pipeline.transformer, Recipe.load("rtn-w4a16")))
