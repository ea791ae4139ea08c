"""Recipes: shipped ones load, files are validated, rules choose the layers that their targets say."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ditquant.engine import check_rule
from ditquant.errors import DitQuantError
from ditquant.models import ROLES, find_linears
from ditquant.recipe import Recipe, Rule, list_recipes
from ditquant.specs import ActSpec, TransformSpec, WeightSpec
from ditquant.threshold import Threshold
from tests.tiny import TINY, tiny

BITS = ["w3a4", "w3a6", "w3a8", "w3a16", "w4a4", "w4a6", "w4a8", "w4a16", "w6a6", "w8a8"]
GOOD = {
    "name": "mine",
    "description": "a recipe",
    "rules": [
        {"target": "blocks.0.*", "weight": None},
        {"target": "role:ffn_*, attn_q", "weight": {"bits": 4, "group_size": 64}, "activation": {"bits": 8}},
        {
            "target": r"re:blocks\.\d+\.attn\.to_k",
            "weight": {"bits": 3},
            "transforms": ["hadamard"],
            "rank": 8,
            "choose": {
                "transforms": [[], ["smooth", {"kind": "hadamard", "options": {"block": 64}}]],
                "clip": [0.9, 1],
            },
        },
    ],
}


METHODS = {  # method: format, quantizer, its options, transforms, quantizer of the modulation
    "duquant": ("affine", "rtn", {}, ["smooth", "dual_rotation"], "rtn"),
    "gptq": ("affine", "gptq", {"clip": "mse"}, [], "rtn"),
    "lrq": ("twin_log", "twin_log", {"search": "fit"}, ["smooth", "adaptive_rotation"], "twin_log"),
    "lrq-gptq": ("twin_log", "gptq", {}, ["smooth", "adaptive_rotation"], "twin_log"),
    "quarot": ("affine", "rtn", {"clip": "mse"}, ["hadamard"], "rtn"),
    "rtn": ("affine", "rtn", {}, [], "rtn"),
    "smoothquant": ("affine", "rtn", {}, ["smooth"], "rtn"),
    "vidit-q": ("affine", "rtn", {}, ["smooth", "hadamard"], "rtn"),
}
GROUPED = {"qdit": "rtn", "qdit-gptq": "gptq"}
GROUPED_BITS = ["w3a8", "w4a6", "w4a8", "w6a8"]
OTHERS = ("svdquant", "lrq-plus", "vidit-q-mixed", "full")  # tested by themselves


def test_the_shipped_recipes():
    plain = [f"{method}-{bits}" for method in [*METHODS, *OTHERS[:2]] for bits in BITS]
    plain += ["full-w4a8-paro30", *(f"lrq-plus-lean-{bits}" for bits in BITS if bits.endswith(("a8", "a16")))]
    plain += [f"vidit-q-mixed-{bits}" for bits in BITS if "w8" not in bits and "w6" not in bits and "a16" not in bits]
    grouped = [f"{method}-{bits}" for method in GROUPED for bits in GROUPED_BITS]
    assert sorted(list_recipes()) == sorted(plain + grouped)
    methods = [*METHODS, *GROUPED, *OTHERS[:3]]
    assert len({Recipe.load(f"{method}-w4a8").description for method in methods}) == len(methods)


@pytest.mark.parametrize("bits", GROUPED_BITS)
@pytest.mark.parametrize("method", GROUPED)
def test_a_shipped_recipe_with_groups_has_them_on_both_sides(method, bits):
    recipe = Recipe.load(f"{method}-{bits}")
    weight_bits, act_bits = (int(n) for n in bits[1:].split("a"))
    rule, modulation = (recipe.match(role, "x") for role in ("attn_out", "modulation"))
    assert rule.weight == modulation.weight == WeightSpec(weight_bits, "affine", 128, symmetric=False)
    assert rule.activation == ActSpec(act_bits, "group", 128, symmetric=False)
    assert (rule.quantizer, modulation.quantizer, modulation.activation) == (GROUPED[method], "rtn", None)
    assert recipe.match("embedding", "x").weight == WeightSpec(8)
    assert all(recipe.match(role, "x") is not None for role in ROLES)


@pytest.mark.parametrize("bits", BITS)
def test_svdquant_has_groups_and_a_branch(bits):
    rule = Recipe.load(f"svdquant-{bits}").match("attn_q", "transformer_blocks.0.attn1.to_q")
    weight_bits, act_bits = (int(n) for n in bits[1:].split("a"))
    assert (rule.rank, rule.quantizer, [t.kind for t in rule.transforms]) == (32, "rtn", ["smooth"])
    assert rule.weight == WeightSpec(weight_bits, group_size=64)
    assert rule.activation == (None if act_bits == 16 else ActSpec(act_bits, "group", 64))


def test_vidit_q_balances_timesteps_and_may_mix_bits_by_role():
    mixed, plain = Recipe.load("vidit-q-mixed-w4a8"), Recipe.load("vidit-q-w4a8")
    bits = {role: mixed.match(role, "x").weight.bits for role in ("cross_k", "attn_out", "attn_q", "ffn_down")}
    assert bits == {"cross_k": 8, "attn_out": 6, "attn_q": 4, "ffn_down": 4}
    for recipe in (mixed, plain):
        smooth, _ = recipe.match("cross_k", "x").transforms
        assert smooth.options == {"alpha": 0.5, "over": "timesteps"}


@pytest.mark.parametrize("bits", BITS)
def test_lrq_plus_chooses_transforms_and_where_it_pays_a_clip(bits):
    rule = Recipe.load(f"lrq-plus-{bits}").match("attn_q", "transformer_blocks.0.attn1.to_q")
    weight_bits, act_bits = (int(n) for n in bits[1:].split("a"))
    assert (rule.quantizer, rule.quantizer_options) == ("gptq", {"joint": True})
    assert rule.weight == WeightSpec(weight_bits, "twin_log") and len(rule.choose.transforms) >= 2
    assert rule.rank == 32
    modulation = Recipe.load(f"lrq-plus-{bits}").match("modulation", "transformer_blocks.0.norm1.linear")
    assert (modulation.weight, modulation.quantizer, modulation.rank) == (rule.weight, "gptq", 8)
    assert modulation.activation is None and modulation.transforms == ()
    if act_bits in (4, 6):
        assert rule.activation == ActSpec(act_bits, "group", 64, symmetric=False)
        assert len(rule.choose.clip) == 7 and max(rule.choose.clip) == 1
    else:
        assert rule.activation == (None if act_bits == 16 else ActSpec(8)) and rule.choose.clip == ()
        lean = Recipe.load(f"lrq-plus-lean-{bits}").match("attn_q", "transformer_blocks.0.attn1.to_q")
        assert lean == replace(rule, rank=0)


@pytest.mark.parametrize("name", [n for n in list_recipes() if not n.startswith(("qdit", *OTHERS))])
def test_a_shipped_recipe_does_what_its_name_says(name):
    recipe = Recipe.load(name)
    method, _, bits = name.rpartition("-")
    weight_bits, act_bits = (int(n) for n in bits[1:].split("a"))
    format_name, quantizer, options, transforms, plain = METHODS[method]
    rule = recipe.match("ffn_up", "transformer_blocks.0.ff.net.0.proj")
    assert recipe.name == name
    assert rule.weight == WeightSpec(weight_bits, format_name)
    assert rule.activation == (None if act_bits == 16 else ActSpec(act_bits, "token", symmetric=True))
    assert (rule.quantizer, rule.quantizer_options) == (quantizer, options)
    assert [t.kind for t in rule.transforms] == transforms
    modulation = recipe.match("modulation", "transformer_blocks.0.norm1.linear")
    assert (modulation.weight, modulation.quantizer) == (rule.weight, plain)
    assert modulation.activation is None and modulation.transforms == ()
    assert recipe.match("embedding", "x").weight == WeightSpec(8)
    assert all(recipe.match(role, "x") is not None for role in ROLES)


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.endswith(("w4a4", "w4a8"))])
def test_a_shipped_recipe_passes_the_checks_of_its_parts(name):
    layer = find_linears(tiny("dit", attention_head_dim=64)).layers[0]
    for rule in Recipe.load(name).rules:
        check_rule(rule, layer)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_survives_json(name):
    recipe = Recipe.load(name)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.load(recipe.to_dict()) == recipe
    assert Recipe.load(recipe) is recipe


@pytest.mark.parametrize("name", TINY)
def test_a_shipped_recipe_covers_every_family(name):
    layers = [(layer.name, layer.role) for layer in find_linears(tiny(name)).layers]
    recipe = Recipe.load("lrq-w4a8")
    recipe.check_patterns(layers)
    assert all(recipe.match(role, layer).weight is not None for layer, role in layers)


def test_thresholds_go_with_the_recipe_and_change_nothing_else():
    plain = Recipe.from_dict(GOOD)
    recipe = Recipe.from_dict(GOOD | {"thresholds": ["step_sqnr_db>=20", "ssim >= 0.8"]})
    assert recipe.thresholds == (Threshold("step_sqnr_db", ">=", 20.0), Threshold("ssim", ">=", 0.8))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.to_dict() == plain.to_dict() | {"thresholds": ["step_sqnr_db>=20.0", "ssim>=0.8"]}
    assert recipe.makes() == plain.makes() == plain.to_dict() and "thresholds" not in plain.to_dict()


def test_rules_in_order():
    recipe = Recipe.load(GOOD)
    keep, some, key = recipe.rules
    assert recipe.match("attn_q", "blocks.0.attn.to_q") is keep
    assert recipe.match("attn_q", "blocks.1.attn.to_q") is some
    assert recipe.match("ffn_context_up", "blocks.1.ff") is some
    assert recipe.match("attn_k", "blocks.12.attn.to_k") is key
    assert recipe.match("attn_k", "blocks.12.attn.to_k.more") is None
    assert recipe.match("attn_v", "blocks.1.attn.to_v") is None
    assert key.transforms == (TransformSpec("hadamard"),) and key.rank == 8


def write(folder: Path, data, name="mine.yaml") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def test_a_users_file(tmp_path):
    path = write(tmp_path, GOOD)
    assert Recipe.load(path) == Recipe.load(str(path)) == Recipe.from_dict(GOOD)


def test_a_users_file_with_variants(tmp_path):
    data = {"name": "m", "variants": ["w3a4", "w5a16"], "rules": [{"target": "*", "weight": {}, "activation": {}}]}
    path = write(tmp_path, data)
    (rule,) = Recipe.load(f"{path}:w3a4").rules
    assert (rule.weight, rule.activation) == (WeightSpec(3), ActSpec(4))
    recipe = Recipe.load(f"{path}:w5a16")
    assert recipe.name == "m-w5a16"
    assert (recipe.rules[0].weight, recipe.rules[0].activation) == (WeightSpec(5), None)
    with pytest.raises(DitQuantError, match=r"has variants. Add one of them to its name: w3a4, w5a16\."):
        Recipe.load(path)
    with pytest.raises(DitQuantError, match=r"unknown variant of recipe .* 'w4a4'"):
        Recipe.load(f"{path}:w4a4")
    assert Recipe.load(data | {"variants": ["w2a2"]}).name == "m-w2a2"


def test_bits_that_are_written_win_over_the_variant():
    rules = [{"target": "*", "weight": {"bits": 8}, "activation": {"bits": 6}}]
    (rule,) = Recipe.load({"name": "m", "variants": ["w3a16"], "rules": rules}).rules
    assert (rule.weight.bits, rule.activation.bits) == (8, 6)


def rule(**changes):
    return lambda data: data["rules"][1].update(changes)


BAD = {
    "unknown key of a recipe 'rule'. Did you mean 'rules'": lambda d: d.update(rule=1),
    "a recipe needs a 'name' and a list of 'rules'": lambda d: d.pop("name"),
    "'rules' must be a list with at least one entry, got []": lambda d: d.update(rules=[]),
    "'rules' must be a list with at least one entry, got {'a': 1}": lambda d: d.update(rules={"a": 1}),
    "'variants' must be a list with at least one entry, got 'w4a8'": lambda d: d.update(variants="w4a8"),
    "variant 'w9a8' is not allowed. Write w with 2 to 8": lambda d: d.update(variants=["w9a8"]),
    "variant 'w4a12' is not allowed": lambda d: d.update(variants=["w4a12"]),
    "got name 3": lambda d: d.update(name=3),
    "got name 'mine'": lambda d: d.update(description=3),
    "rule 2 of a recipe must be a mapping, got str": lambda d: d["rules"].__setitem__(1, "role:ffn_up"),
    "rule 2 of a recipe needs a 'target' and a 'weight'": lambda d: d["rules"][1].pop("weight"),
    "'thresholds' of a recipe must be a list": lambda d: d.update(thresholds={"step_sqnr_db": 20}),
    "'thresholds' of a recipe: unknown metric 'step_sqnr'": lambda d: d.update(thresholds=["step_sqnr>=20"]),
    "unknown key of rule 2 of a recipe 'quantiser'. Did you mean 'quantizer'": rule(quantiser="rtn"),
    "unknown key of weight of rule 2 of a recipe 'bit'. Did you mean 'bits'": rule(weight={"bits": 4, "bit": 3}),
    "weight of rule 2 of a recipe has no bits. Write them, or give the recipe variants": rule(weight={}),
    "activation of rule 2 of a recipe has no bits": rule(activation={}),
    "weight of rule 2 of a recipe must be a mapping, got int": rule(weight=4),
    "weight of rule 2 of a recipe: weight bits 9 are not allowed. Choose an integer from 2 to 8": rule(
        weight={"bits": 9}
    ),
    "activation bits 1 are not allowed": rule(activation={"bits": 1}),
    "unknown granularity 'row'": rule(activation={"bits": 8, "granularity": "row"}),
    "unknown role 'ffn_dwn'. Did you mean 'ffn_down'": rule(target="role:attn_q,ffn_dwn"),
    "unknown role 'x*'": rule(target="role:x*"),
    "rule target 're:(' is not a regular expression": rule(target="re:("),
    "rule target '' is not allowed": rule(target=""),
    "rule target 3 is not allowed": rule(target=3),
    "transforms of rule 2 of a recipe must be a list, got 'smooth'": rule(transforms="smooth"),
    "unknown key of transform of rule 2 of a recipe 'alpha'": rule(transforms=[{"kind": "smooth", "alpha": 1}]),
    "transform of rule 2 of a recipe is incomplete": rule(transforms=[{"options": {}}]),
    "rank -1 is not allowed": rule(rank=-1),
    "unknown key of what rule 2 of a recipe chooses 'clips'. Did you mean 'clip'": rule(choose={"clips": [1]}),
    "what rule 2 of a recipe chooses must be a mapping, got list": rule(choose=[]),
    "clip of what rule 2 of a recipe chooses must be a list, got 0.5": rule(choose={"clip": 0.5}),
    "clip 1.5 is not allowed. Choose numbers above 0, at most 1": rule(choose={"clip": [1.5]}),
    "transforms of what rule 2 of a recipe chooses must be a list, got 'smooth'": rule(
        choose={"transforms": ["smooth"]}
    ),
    "quantizer 3 is not allowed": rule(quantizer=3),
    "quantizer_options must be a mapping, got 'fit'": rule(quantizer_options="fit"),
    "options must be plain numbers, words, lists and mappings": rule(quantizer_options={"a": float("nan")}),
    "weight is null, which keeps the layer in floating point. Remove the other settings": rule(weight=None),
}


@pytest.mark.parametrize("message", BAD)
def test_recipes_that_are_refused(message):
    data = copy.deepcopy(GOOD)
    BAD[message](data)
    with pytest.raises(DitQuantError) as caught:
        Recipe.load(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_answered_with_close_ones():
    with pytest.raises(DitQuantError, match=r"unknown recipe 'lrq-w4a9'. Did you mean 'lrq-w4a"):
        Recipe.load("lrq-w4a9")
    with pytest.raises(DitQuantError, match="a recipe must be a name, a file or a mapping, got int"):
        Recipe.load(4)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(DitQuantError, match=r"'.*none\.yaml' does not exist. Give a file, or one of: duquant-w3a4"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(DitQuantError, match=r"mine\.yaml', line 3 is not YAML: .*"):
        Recipe.load(write(tmp_path, "name: x\nrules:\n\t- target\n"))
    with pytest.raises(DitQuantError, match=r"must be a mapping with 'name' and 'rules', got NoneType"):
        Recipe.load(write(tmp_path, ""))
    with pytest.raises(DitQuantError, match="cannot be read"):
        Recipe.load(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DitQuantError, match="cannot be read"):
        Recipe.load(tmp_path / "bytes.yaml")
    with pytest.raises(DitQuantError, match="is not YAML"):
        Recipe.load(write(tmp_path, "!!python/object/apply:os.getcwd []"))


def test_patterns_are_checked_against_the_model():
    layers = [("blocks.0.attn.to_q", "attn_q"), ("blocks.1.attn.to_q", "attn_q"), ("blocks.1.ff.up", "ffn_up")]
    Recipe.load(GOOD | {"rules": GOOD["rules"][:2]}).check_patterns(layers)

    def recipe(*rules):
        return Recipe("mine", rules)

    keep, some = Rule("role:attn_q", None), Rule("role:ffn_down", WeightSpec(4))
    with pytest.raises(DitQuantError) as caught:
        recipe(some, Rule("blocks.1.attn.q", None)).check_patterns(layers)
    assert str(caught.value).startswith("the rule's pattern 'blocks.1.attn.q' matches no layer of the model. Layers ne")
    assert "blocks.1.attn.to_q" in str(caught.value)
    with pytest.raises(
        DitQuantError, match=r"'mine' quantizes none of the model's 3 linear layers. .*: attn_q, ffn_up"
    ):
        recipe(keep, some).check_patterns(layers)
    with pytest.raises(DitQuantError, match="quantizes none of the model's 0 linear layers"):
        recipe(Rule("role:*", WeightSpec(4))).check_patterns([])
    with pytest.raises(DitQuantError, match="The model has no linear layer that can be quantized"):
        recipe(Rule("*", WeightSpec(4))).check_patterns([])


def test_a_layer_kept_by_an_earlier_rule_stays():
    layers = [("a", "attn_q")]
    with pytest.raises(DitQuantError, match="quantizes none"):
        Recipe("mine", (Rule("a", None), Rule("role:*", WeightSpec(4)))).check_patterns(layers)
