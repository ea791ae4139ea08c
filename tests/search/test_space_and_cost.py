"""Genes are divisors, cost is counted from real shapes, and what does not fit is answered with what does."""

import json
import re
from dataclasses import replace

import pytest

from ditquant.engine import match
from ditquant.errors import DitQuantError
from ditquant.recipe import Recipe
from ditquant.search import CostModel, Gene, Latencies, LayerCache, Scorer, Space, measure_tokens
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
    for name, offered in space.choices.items():
        wide = roles[name] == "ffn_down"
        assert offered == {"groups": (32, 64, 128, 512) if wide else (32, 64, 128)}


def test_a_gene_sets_weight_and_activation_together(space):
    name = next(iter(space.searched))
    rule = space.rule(name, space.uniform(32)[name])
    assert rule.weight.group_size == rule.activation.group_size == 32
    assert (rule.target, rule.activation.granularity, rule.weight.bits) == (name, "group", 3)


def test_uniform_genomes(space):
    assert list(space.uniforms()) == ["g = 32", "g = 64", "g = 128", "full row"]
    assert {gene.groups for gene in space.uniform(None).values()} == {WIDTH, HIDDEN}
    assert space.uniform(512) is None


def test_tokens_are_those_that_reach_a_layer(pipeline, space):
    modules = {name: pipeline.transformer.get_submodule(name) for name in space.searched}
    scorer = Scorer(pipeline, CLASSES, 0, {"steps": 2, "guidance": 1.0})
    assert set(measure_tokens(modules, 2, scorer.see_truth).values()) == {TOKENS}
    guided = Scorer(pipeline, CLASSES, 0, {"steps": 2, "guidance": 2.0})
    assert set(measure_tokens(modules, 2, guided.see_truth).values()) == {2 * TOKENS}
    turns = {name: float(name.startswith("transformer_blocks.0")) for name in modules}
    shared = measure_tokens(modules, 2, scorer.see_truth, lambda name: str(turns[name]))
    assert set(shared.values()) == {TOKENS / 2}, "of two models with as many calls each has half of them"
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
    mixed = model.of(space, coarse | {name: fine[name]}).total
    others = sum(
        model.of(space, coarse | {n: fine[n]}).total - model.of(space, coarse).total for n in coarse if n != name
    )
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


def test_further_genes_are_offered_where_they_are_asked_for(pipeline, space):
    matched = match(pipeline.transformer, Recipe.load("qdit-gptq-w4a8"))
    wide = Space.of(matched, [64], ("groups", "bits", "rotation", "format"))
    name = next(iter(wide.searched))
    assert len(wide.offers(name)) == len(set(wide.offers(name))) == 2 * 5 * 3 * 2
    assert set(wide.parameters()) == {n + a for n in wide.searched for a in ("", " bits", " rotation", " format")}
    genome = wide.uniform(64)
    assert wide.genome(wide.drawn(genome)) == genome
    own = wide.rule(name, genome[name])
    assert own == replace(wide.searched[name][1], target=name, weight=own.weight, activation=own.activation)
    rule = wide.rule(name, Gene(64, 3, "smooth+hadamard", "twin_log"))
    assert (rule.weight.bits, rule.weight.format, rule.quantizer) == (3, "twin_log", "gptq")
    assert [t.kind for t in rule.transforms] == ["smooth", "hadamard"] and rule.activation.group_size == 64
    plain = Space.of(match(pipeline.transformer, Recipe.load("qdit-w4a8")), [64], ("format",))
    assert plain.rule(name, Gene(128, 4, "none", "twin_log")).quantizer == "twin_log"
    assert set(plain.choices[name]) == {"format", "groups"} and plain.choices[name]["groups"] == (128,)
    with pytest.raises(DitQuantError, match=r"gene 'bit'.*bits, format, groups, rotation"):
        Space.of(matched, None, ("bit",))


def test_bits_and_rotations_have_their_cost(pipeline):
    space = Space.of(match(pipeline.transformer, Recipe.load("qdit-w4a8")), [64], ("groups", "bits", "rotation"))
    model = CostModel(dict.fromkeys(space.searched, float(TOKENS)))
    name = "transformer_blocks.0.attn1.to_q"
    four, eight, turned, both = (
        model.layer(space, name, Gene(64, *rest, "affine"))
        for rest in ((4, "none"), (8, "none"), (4, "hadamard"), (4, "smooth+hadamard"))
    )
    assert eight.bit_operations == 2 * four.bit_operations
    # 128 = 8 x 16 or the like: a rotation takes at least log2(128) and at most 128 multiplications a channel
    assert TOKENS * WIDTH * 7 <= turned.rotations <= TOKENS * WIDTH * 128
    assert turned.total - four.total == 576 * turned.rotations
    assert both.rotations - turned.rotations == TOKENS * WIDTH
    assert model.cheapest(space)[name] == Gene(WIDTH, 3, "none", "affine")


def test_measured_latency_stands_for_the_cost(pipeline, tmp_path, monkeypatch):
    space = Space.of(match(pipeline.transformer, Recipe.load("qdit-w4a8")), [64])
    tokens = dict.fromkeys(space.searched, float(TOKENS))
    layers = LayerCache(pipeline.transformer, space, {})
    table = tmp_path / "table.json"
    model = CostModel(tokens, Latencies(table, layers, tokens).ms)
    assert model.budget(space, "g64") == model.of(space, space.uniform(64)).total
    known = json.loads(table.read_text())
    # three shapes, of which two have two sizes and the feed-forward's second one three
    assert len(known) == 2 + 2 + 3 - 1 and all(ms > 0 for ms in known.values())
    assert "128 -> 512, 16 rows, w4a8 affine g64" in known
    table.write_text(json.dumps(dict.fromkeys(known, 2.0)))
    monkeypatch.setattr(Latencies, "_measure", None)  # all is in the table
    again = CostModel(tokens, Latencies(table, layers, tokens).ms)
    assert again.of(space, space.uniform(64)).total == 2.0 * len(space.searched)
    with pytest.raises(DitQuantError, match=r"budget 23 cannot be reached: the smallest is 24 ms"):
        again.budget(space, "23")
    for text in ("[]", '{"a": -1}', '{"a": "x"}', "{"):
        table.write_text(text)
        with pytest.raises(DitQuantError, match=r"table\.json is no table of latencies"):
            Latencies(table, layers, tokens)


def test_group_sizes_that_are_refused(pipeline):
    matched = match(pipeline.transformer, Recipe.load("qdit-w4a8"))
    assert Space.of(matched, [64]).choices["transformer_blocks.0.attn1.to_q"]["groups"] == (64, 128)
    with pytest.raises(DitQuantError, match=r"group size 48 divides no layer's width. Divisors of 128: 8, 16, 32, 64,"):
        Space.of(matched, [64, 48])
    with pytest.raises(DitQuantError, match=r"group size 0 is not allowed\. Choose a positive integer"):
        Space.of(matched, [0])
    with pytest.raises(DitQuantError, match="quantizes no activation"):
        Space.of(match(pipeline.transformer, Recipe.load("rtn-w4a16")))
