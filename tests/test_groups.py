"""Group sizes that do not divide a layer's width: the largest below that does, and said once."""

import pytest
import torch

import ditquant
from ditquant.errors import DitQuantError
from ditquant.groups import fitting
from ditquant.recipe import Recipe, list_recipes
from ditquant.specs import QuantPlan
from tests.tiny import run, tiny

GROUPED = [name for name in list_recipes() if any(s.weight and s.weight.group_size for s in Recipe.load(name).rules)]
GROUPED += ["lrq-plus-w4a4"]


@pytest.mark.parametrize(
    ("group_size", "width", "fitted"),
    [
        (64, 128, 64),
        (64, 84, 42),
        (64, 96, 48),
        (128, 1120, 112),
        (64, 1152, 64),
        (128, 24, 24),  # one group
        (64, 127, None),
        (64, 2 * 127, None),
        (64, 13, 13),
        (8, 36, 6),
        (8, 63, 7),
        (5, 4, 4),
        (2, 3, 1),
        (1, 3, 1),
        (10**12, 48, 48),
    ],
)
def test_the_largest_divisor_below_is_taken_unless_it_is_small(group_size, width, fitted):
    assert fitting(group_size, width) == fitted


@pytest.mark.parametrize("name", [name for name in GROUPED if name.endswith(("w4a8", "w4a4"))])
@pytest.mark.parametrize("head_dim", [21, 37])
def test_a_shipped_recipe_works_at_any_width(name, head_dim, tmp_path, caplog):
    """84 and 336 channels, or 148 and 592: 64 divides none of them."""
    model = tiny("dit", attention_head_dim=head_dim, num_attention_heads=4)
    plan = ditquant.quantize(model, name, forward=run)
    assert caplog.text.count("the recipe is fitted to the widths") == 1
    assert all(layer.weight.groups(model.get_submodule(n).in_features) for n, layer in plan.layers.items())
    assert QuantPlan.from_dict(plan.to_dict()).hash() == plan.hash()
    model.save_pretrained(tmp_path)
    assert torch.equal(run(type(model).from_pretrained(tmp_path)), run(model))


@pytest.mark.parametrize("name", ["svdquant-w4a8", "lrq-plus-w4a8", "lrq-plus-lean-w4a8", "lrq-plus-w4a4"])
def test_a_shipped_recipe_works_where_layers_are_narrower_than_its_rank(name, caplog):
    model = tiny("dit", attention_head_dim=2, num_attention_heads=2)
    plan = ditquant.quantize(model, name, forward=run)
    wanted = {layer.rank for layer in ditquant.quantize(tiny("dit"), name, forward=run).layers.values()} - {0}
    ranks = {layer.rank for layer in plan.layers.values()} - {0}
    assert ranks == {4} and min(wanted) > 4
    assert f"rank 4 in place of {max(wanted)} for 4 -> " in caplog.text


def test_a_rank_of_ones_own_that_no_layer_can_have_is_a_slip(caplog):
    rules = [{"target": "role:*", "weight": {"bits": 4}, "rank": 33}]
    with pytest.raises(DitQuantError, match=r"rank 33 is too large for .*Choose at most 32\."):
        ditquant.quantize(tiny("wan", ffn_dim=16), {"name": "mine", "rules": rules}, forward=run)
    rules[0]["rank"] = 24
    plan = ditquant.quantize(tiny("wan", ffn_dim=16), {"name": "mine", "rules": rules}, forward=run)
    assert {layer.rank for layer in plan.layers.values()} == {16, 24}
    assert "rank 16 in place of 24 for 16 -> 32 (2 layers)" in caplog.text


def mine(group_size, **more):
    sides = {"weight": {"bits": 4, "group_size": group_size}}
    sides["activation"] = {"bits": 8, "granularity": "group", "group_size": group_size}
    return {"name": "mine", "rules": [{"target": "role:*"} | sides]} | more


def test_a_size_of_ones_own_is_fitted_where_it_divides_some_layers(caplog):
    """The feed-forward layer has 74 channels in the middle, all others 32."""
    model = tiny("wan", ffn_dim=74)
    plan = ditquant.quantize(model, mine(32))
    sizes = {model.get_submodule(n).in_features: layer.weight.group_size for n, layer in plan.layers.items()}
    assert sizes == {32: 32, 74: None}
    tokens = [layer.activation for layer in plan.layers.values() if layer.weight.group_size is None]
    assert {(spec.granularity, spec.group_size) for spec in tokens} == {("token", None)}
    assert "full rows in place of 32 for 74 channels (2 layers)" in caplog.text


def test_a_size_of_ones_own_that_divides_no_layer_is_a_slip():
    with pytest.raises(DitQuantError, match=r"group_size 24 does not divide in_features 32 .*Divisors near it"):
        ditquant.quantize(tiny("pixart"), mine(24))
    plan = ditquant.quantize(tiny("pixart"), mine(24, any_width=True))
    assert {layer.weight.group_size for layer in plan.layers.values()} == {16}
    with pytest.raises(DitQuantError, match="any_width 'yes' of recipe 'mine' is not allowed"):
        Recipe.load(mine(24, any_width="yes"))


def test_a_recipe_keeps_it_as_data():
    for name in list_recipes():
        recipe = Recipe.load(name)
        assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert "any_width" not in Recipe.load("lrq-w4a8").to_dict()
