"""Families against the real classes: every linear layer of the blocks has one role, and lists run block by block."""

import inspect
import re
from collections import Counter

import pytest
import torch
from torch import nn

from ditquant.errors import DitQuantError
from ditquant.models import FAMILIES, ROLES, BlockList, ModelFamily, family_of, find_linears, generic
from ditquant.models.base import register
from tests.tiny import TINY, inputs, tiny

# role -> layers of the whole tiny model, counted by hand from the classes' source
SELF = ("attn_q", "attn_k", "attn_v", "attn_out")
CROSS = ("cross_q", "cross_k", "cross_v", "cross_out")
EXPECTED = {
    "dit": {**dict.fromkeys(SELF, 2), "ffn_up": 2, "ffn_down": 2, "modulation": 2, "embedding": 4},
    "pixart": {**dict.fromkeys(SELF + CROSS, 2), "ffn_up": 2, "ffn_down": 2},
    "sd3": {
        **dict.fromkeys(SELF, 3 + 1),
        **dict.fromkeys(("add_q", "add_k", "add_v"), 3),
        **{"add_out": 2, "ffn_up": 3, "ffn_down": 3, "ffn_context_up": 2, "ffn_context_down": 2, "modulation": 6},
    },
    "flux": {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v"), 4),
        **dict.fromkeys(("attn_out", "add_q", "add_k", "add_v", "add_out"), 2),
        **{"ffn_up": 4, "ffn_down": 2, "ffn_context_up": 2, "ffn_context_down": 2, "single_out": 2, "modulation": 6},
    },
    "cogvideox": {**dict.fromkeys(SELF, 2), "ffn_up": 2, "ffn_down": 2, "modulation": 4},
    "wan": {**dict.fromkeys(SELF + CROSS, 2), "ffn_up": 2, "ffn_down": 2},
    "latte": {**dict.fromkeys(SELF, 4), **dict.fromkeys(CROSS, 2), "ffn_up": 4, "ffn_down": 4},
}
EXPECTED["hunyuan_video"] = EXPECTED["flux"]
IN_BLOCKS = re.compile(r"((temporal_|single_)?transformer_blocks|blocks)\.\d+\.(.+)")


def linears_in_blocks(model: nn.Module) -> dict[str, str]:
    """Map the linear layers in the blocks to their names within their block, found by name alone."""
    found = {n: IN_BLOCKS.fullmatch(n) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {name: match[3] for name, match in found.items() if match}


def test_every_family_has_a_tiny_model():
    assert set(TINY) == set(FAMILIES)


@pytest.mark.parametrize("name", TINY)
def test_all_linears_of_the_blocks_and_nothing_else(name):
    model = tiny(name)
    coverage = find_linears(model)
    assert coverage.family == name
    assert {layer.name for layer in coverage.layers} == set(linears_in_blocks(model))
    assert Counter(layer.role for layer in coverage.layers) == EXPECTED[name]


@pytest.mark.parametrize("name", TINY)
def test_exactly_one_role_matches(name):
    patterns = FAMILIES[name].roles
    for within in linears_in_blocks(tiny(name)).values():
        assert sum(bool(re.fullmatch(p, within)) for p in patterns.values()) == 1, within


@pytest.mark.parametrize("name", TINY)
def test_every_role_pattern_matches_a_layer_of_its_class(name):
    options = {"added_kv_proj_dim": 32, "image_dim": 24} if name == "wan" else {}
    layers = set(linears_in_blocks(tiny(name, **options)).values())
    unused = {role for role, p in FAMILIES[name].roles.items() if not any(re.fullmatch(p, n) for n in layers)}
    assert unused == ({"add_q", "add_out"} if name == "wan" else set())


@pytest.mark.parametrize("name", TINY)
def test_guessing_agrees_with_the_family(name):
    model = tiny(name)
    known = {layer.name: layer.role for layer in find_linears(model).layers}
    guessed = {layer.name: layer.role for layer in find_linears(model, generic(model)).layers}
    if name == "sd3":  # no name tells that its attn2 is a second self-attention
        known, guessed = ({n: r for n, r in found.items() if "attn2" not in n} for found in (known, guessed))
    assert {n: guessed.get(n) for n in known} == known


@pytest.mark.parametrize("name", TINY)
def test_lists_run_block_by_block(name):
    """Bind the first block's arguments, carry only `outputs`: the last block's output is the model's, bit for bit."""
    model = tiny(name)
    for blocks in FAMILIES[name].blocks:
        if not blocks.outputs:
            continue
        modules = list(model.get_submodule(blocks.path))
        calls, results = [], []
        handles = [modules[0].register_forward_pre_hook(lambda *call, c=calls: c.append(call[1:]), with_kwargs=True)]
        handles += [modules[-1].register_forward_hook(lambda *call, r=results: r.append(call[-1]))]
        with torch.no_grad():
            model(**inputs(model))
            for handle in handles:
                handle.remove()
            bound = inspect.signature(modules[0].forward).bind(*calls[0][0], **calls[0][1])
            for block in modules:
                returned = block(*bound.args, **bound.kwargs)
                returned = returned if isinstance(returned, tuple) else (returned,)
                assert len(returned) == len(blocks.outputs)
                bound.arguments.update(zip(blocks.outputs, returned, strict=True))
        expected = results[0] if isinstance(results[0], tuple) else (results[0],)
        for value, truth in zip(returned, expected, strict=True):
            assert (value is None and truth is None) or torch.equal(value, truth)


def test_only_latte_takes_turns():
    assert {name for name, f in FAMILIES.items() if not all(b.outputs for b in f.blocks)} == {"latte"}


def test_a_subclass_belongs_to_its_family():
    class MyPixArt(type(tiny("pixart"))):
        pass

    model = tiny("pixart")
    model.__class__ = MyPixArt
    assert family_of(model) is FAMILIES["pixart"]


def test_a_family_refuses_unknown_roles():
    with pytest.raises(DitQuantError, match=r"unknown role of model family 'x' 'atn_q'. Did you mean 'attn_q'"):
        ModelFamily("x", ("X",), (BlockList("blocks"),), {"atn_q": "q"})


def test_a_list_that_is_missing_is_an_error():
    family = ModelFamily("x", ("Module",), (BlockList("blocks"),), {})
    with pytest.raises(DitQuantError, match=r"Module has no 'blocks', where model family 'x' keeps its blocks"):
        find_linears(nn.Module(), family)


def test_a_name_that_no_pattern_matches_is_guessed(monkeypatch):
    monkeypatch.setattr("ditquant.models.base.FAMILIES", type(FAMILIES)("model family"))
    family = register(ModelFamily("x", ("X",), (BlockList("blocks"),), {"ffn_up": "a"}))
    assert family.role("a", 4, 8) == "ffn_up"
    assert family.role("attn.to_q", 4, 4) == "attn_q"


def test_roles_are_described():
    assert all(ROLES.values())
    used = {role for family in FAMILIES.values() for role in family.roles}
    assert used <= set(ROLES)
