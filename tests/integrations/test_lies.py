"""Checkpoints that were made to lie, with right checksums: every claim is checked by itself, in one line."""

import shutil
from functools import partial

import pytest
import torch

from ditquant import DitQuantError
from tests.integrations.built import equal_states, layers, quantized
from tests.integrations.lies import lie

Q, K, V = (f"transformer_blocks.0.attn1.to_{c}" for c in "qkv")
OUT, UP = "transformer_blocks.0.attn1.to_out.0", "transformer_blocks.0.ff.net.0.proj"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    quantized().save_pretrained(folder)
    return folder


def scheme(plan, name):
    """A layer's scheme, no longer shared with others."""
    plan["schemes"].append({**plan["schemes"][plan["layers"][name]]})
    plan["layers"][name] = len(plan["schemes"]) - 1
    return plan["schemes"][-1]


def plan_of(name, **changes):
    return lambda plan, tensors: scheme(plan, name).update(changes)


def weight_of(name, **changes):
    return lambda plan, tensors: (s := scheme(plan, name)).update(weight={**s["weight"], **changes})


def transforms_of(name, *transforms):
    return plan_of(name, transforms=[{"kind": kind, "options": options} for kind, options in transforms])


def fill(key, value, dtype=None, place=0):
    def change(plan, tensors):
        tensor = tensors[key]
        (tensor if dtype is None else tensor.view(dtype)).view(-1)[place] = value

    return change


def move_layer(old, new):
    return lambda plan, tensors: plan["layers"].update({new: plan["layers"].pop(old)})


SHAPE = partial(fill, f"{K}.shape", dtype=torch.float16)
LIES = {
    "no such layer": (move_layer(Q, "transformer_blocks.9.attn1.to_q"), "no linear layer"),
    "no linear layer": (move_layer(Q, "transformer_blocks.0.norm1"), "no linear layer"),
    "the model itself": (move_layer(Q, ""), "no linear layer"),
    "a method": (move_layer(Q, "forward"), "no linear layer"),
    "9 bits": (weight_of(Q, bits=9), "bits 9"),
    "true bits": (weight_of(Q, bits=True), "bits True"),
    "other bits": (weight_of(UP, bits=5), "expected shape|should be|missing|damaged"),
    "an unknown format": (weight_of(Q, format="magic"), "unknown weight format"),
    "no symmetry": (weight_of(Q, symmetric="no"), "symmetric"),
    "groups that do not divide": (weight_of(V, group_size=7), f"{V}.*does not divide"),
    "a group of nothing": (weight_of(V, group_size=0), "group_size"),
    "huge groups": (weight_of(V, group_size=10**12), "does not divide"),
    "a rank": (plan_of(Q, rank=4), "rank"),
    "an unknown transform": (transforms_of(Q, ("magic", {})), "unknown transform"),
    "a transform of another dictionary": (transforms_of(Q, ("adaptive_rotation", {})), "transform"),
    "an unknown option": (transforms_of(Q, ("hadamard", {"blocks": 16})), "block"),
    "a block that does not divide": (transforms_of(Q, ("hadamard", {"block": 7})), "block"),
    "a huge block": (transforms_of(UP, ("dual_rotation", {"block": 10**9})), "block"),
    "a block in words": (transforms_of(Q, ("hadamard", {"block": "16"})), "block"),
    "activation groups": (plan_of(UP, activation={"bits": 8, "granularity": "group", "group_size": 7}), "divide"),
    "activation bits": (plan_of(UP, activation={"bits": 16}), "bits 16"),
    "static activations": (plan_of(UP, activation={"bits": 8, "dynamic": False}), "dynamic"),
    "a scheme too far": (lambda plan, _: plan["layers"].update({Q: 99}), "refers to scheme 99"),
    "a scheme before the first": (lambda plan, _: plan["layers"].update({Q: -1}), "refers to scheme -1"),
    "a newer version": (lambda plan, _: plan.update(version=2), "Update ditquant"),
    "no version": (lambda plan, _: plan.pop("version"), "version None"),
    "an unknown key": (lambda plan, _: plan.update(layer={}), "Did you mean 'layers'"),
    "layers in a list": (lambda plan, _: plan.update(layers=[]), "mapping 'layers'"),
    "codes of another shape": (lambda _, t: t.update({f"{Q}.codes": t[f"{Q}.codes"][:-1].clone()}), "shape"),
    "scales in floating point": (
        lambda _, t: t.update({f"{Q}.scale": t[f"{Q}.scale"].float()}),
        "should be torch.int32",
    ),
    "codes in 64 bits": (lambda _, t: t.update({f"{Q}.codes": t[f"{Q}.codes"].long()}), "should be torch.uint8"),
    "signs in 64 bits": (
        lambda _, t: t.update({f"{Q}.transforms.1.signs": t[f"{Q}.transforms.1.signs"].long()}),
        "should be torch.uint8",
    ),
    "a tensor that is missing": (lambda _, t: t.pop(f"{Q}.scale"), f"{Q}.scale' is missing"),
    "a norm that is missing": (lambda _, t: t.pop("scale_shift_table"), "is missing"),
    "NaN scales": (fill(f"{Q}.scale", torch.nan, torch.float32), "scales"),
    "infinite scales": (fill(f"{Q}.scale", torch.inf, torch.float32), "scales"),
    "negative scales": (fill(f"{Q}.scale", -1.0, torch.float32), "scales"),
    "a zero point out of range": (fill(f"{Q}.zero_point", 8), "zero points"),
    "a code book with NaN": (SHAPE(torch.nan), "eta"),
    "a code book that falls": (SHAPE(1.5, place=1), "lo <= hi|0 <= lo"),
    "a code book beyond its scale": (SHAPE(-3.0, place=3), "lo <= hi|0 <= lo"),
    "eta zero": (SHAPE(0.0), "eta"),
    "a smoothing factor of zero": (fill(f"{Q}.transforms.0.factor", 0.0, torch.bfloat16), "smooth"),
    "a permutation out of range": (fill(f"{V}.transforms.0.permutation", 32), "permutation"),
    "a permutation below zero": (fill(f"{V}.transforms.0.permutation", -1), "permutation"),
    "a channel twice": (lambda _, t: twice(t[f"{V}.transforms.0.permutation"]), "permutation"),
    "an index out of range in a rotation": (fill(f"{OUT}.transforms.0.permutation", 30_000), "permutation"),
    "a matrix that is no rotation": (fill(f"{UP}.transforms.0.rotation1", 9.0, torch.float32), "not orthogonal"),
    "a matrix with NaN": (fill(f"{UP}.transforms.0.rotation2", torch.nan, torch.float32), "not orthogonal"),
}


def twice(permutation):
    permutation[0] = permutation[1]


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_in_one_line(name, original, tmp_path):
    change, message = LIES[name]
    shutil.copytree(original, tmp_path / "lie")
    lie(tmp_path / "lie", change)
    with pytest.raises((DitQuantError, ValueError), match=f"(?s){message}") as error:
        type(quantized()).from_pretrained(tmp_path / "lie")
    if isinstance(error.value, DitQuantError):
        assert "\n" not in str(error.value)


def test_without_a_lie_it_loads(original, tmp_path):
    shutil.copytree(original, tmp_path / "truth")
    lie(tmp_path / "truth", lambda plan, tensors: None)
    assert equal_states(type(quantized()).from_pretrained(tmp_path / "truth"), quantized())


def test_the_names_used_above_exist():
    assert {Q, K, V, OUT, UP} <= layers(quantized()).keys()
