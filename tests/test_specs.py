"""Plain data: checked where it is made, equal after a round trip through JSON, refused when it lies."""

import copy
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditquant.errors import DitQuantError
from ditquant.specs import (
    PLAN_VERSION,
    ActSpec,
    LayerPlan,
    QuantPlan,
    TransformSpec,
    WeightSpec,
    check_divides,
    prompt_hash,
)
from ditquant.threshold import Threshold

bits = st.integers(2, 8)
weights = st.builds(
    WeightSpec, bits, st.sampled_from(["affine", "twin_log"]), st.none() | st.integers(1, 256), st.booleans()
)
clips = st.floats(0, 1, exclude_min=True)
activations = st.builds(
    ActSpec, bits, st.sampled_from(["tensor", "sample", "token"]), st.none(), st.booleans(), clip=clips
)
activations |= st.builds(ActSpec, bits, st.just("group"), st.integers(1, 256), st.booleans(), clip=clips)
values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values |= st.text(max_size=5)
options = st.dictionaries(st.text(max_size=5), values | st.lists(values, max_size=3), max_size=3)
transforms = st.lists(st.builds(TransformSpec, st.text(max_size=8), options), max_size=3).map(tuple)
layer_plans = st.builds(LayerPlan, weights, st.none() | activations, transforms, st.integers(0, 64))
plans = st.builds(QuantPlan, st.dictionaries(st.text(max_size=9), layer_plans, max_size=5), st.text(max_size=9))

PLAN = QuantPlan(
    {
        "blocks.0.a": LayerPlan(WeightSpec(4), ActSpec(8), (TransformSpec("smooth", {}),)),
        "blocks.1.a": LayerPlan(WeightSpec(4), ActSpec(8), (TransformSpec("smooth", {}),)),
        "blocks.1.b": LayerPlan(WeightSpec(3, "twin_log"), None, (), 32),
    },
    recipe="mine",
)


@settings(max_examples=100, deadline=None)
@given(plans)
def test_a_plan_survives_json(plan):
    assert QuantPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@settings(max_examples=50, deadline=None)
@given(layer_plans)
def test_a_layer_plan_survives_json(plan):
    assert LayerPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_equal_layers_are_written_once():
    data = PLAN.to_dict()
    assert len(data["schemes"]) == 2
    assert data["layers"] == {"blocks.0.a": 0, "blocks.1.a": 0, "blocks.1.b": 1}
    assert data["version"] == PLAN_VERSION


def test_a_plan_from_before_clips_loads():
    data = PLAN.to_dict()
    for scheme in data["schemes"]:
        if scheme["activation"] is not None:
            assert scheme["activation"].pop("clip") == 1.0
    assert QuantPlan.from_dict(data) == PLAN
    whole = LayerPlan(WeightSpec(4), ActSpec(8, clip=1))
    assert json.dumps(whole.to_dict()) == json.dumps(LayerPlan(WeightSpec(4), ActSpec(8)).to_dict())
    assert LayerPlan.from_dict(LayerPlan(WeightSpec(4), ActSpec(8, clip=0.9)).to_dict()).activation.clip == 0.9


def test_the_hash_changes_with_any_entry():
    changed = [
        QuantPlan(dict(PLAN.layers) | {"blocks.1.b": LayerPlan(WeightSpec(3, "twin_log"), None, (), 31)}, PLAN.recipe),
        QuantPlan({k: v for k, v in PLAN.layers.items() if k != "blocks.1.a"}, PLAN.recipe),
        QuantPlan(PLAN.layers, "other"),
        QuantPlan(PLAN.layers, PLAN.recipe, {"grid": [1]}),
    ]
    assert len({plan.hash() for plan in [PLAN, *changed]}) == 5
    assert QuantPlan.from_dict(PLAN.to_dict()).hash() == PLAN.hash()
    assert len(PLAN.hash()) == 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightSpec(1), "weight bits 1 are not allowed. Choose an integer from 2 to 8."),
        (lambda: WeightSpec(9), "weight bits 9 are not allowed"),
        (lambda: WeightSpec(4.0), "weight bits 4.0 are not allowed"),
        (lambda: WeightSpec(True), "weight bits True are not allowed"),
        (lambda: WeightSpec("4"), "weight bits '4' are not allowed"),
        (lambda: WeightSpec(4, group_size=0), "weight group_size 0 is not allowed"),
        (lambda: WeightSpec(4, group_size=1.5), "weight group_size 1.5 is not allowed"),
        (lambda: WeightSpec(4, symmetric=1), "weight symmetric 1 is not allowed. Choose true or false."),
        (lambda: WeightSpec(4, format=3), "weight format 3 is not allowed"),
        (lambda: ActSpec(16), "activation bits 16 are not allowed"),
        (lambda: ActSpec(8, "tokens"), "unknown granularity 'tokens'. Did you mean 'token'"),
        (lambda: ActSpec(8, "group"), "give a group_size with granularity 'group', and only there"),
        (lambda: ActSpec(8, "token", 64), "give a group_size with granularity 'group', and only there"),
        (lambda: ActSpec(8, dynamic=False), "activation dynamic must be true"),
        (lambda: ActSpec(8, clip=0), "activation clip 0 is not allowed. Choose a number above 0, at most 1."),
        (lambda: ActSpec(8, clip=1.1), "activation clip 1.1 is not allowed"),
        (lambda: ActSpec(8, clip=float("nan")), "activation clip nan is not allowed"),
        (lambda: ActSpec(8, clip=True), "activation clip True is not allowed"),
        (lambda: ActSpec(8, clip="0.9"), "activation clip '0.9' is not allowed"),
        (lambda: TransformSpec(3), "a transform needs a kind and options"),
        (lambda: TransformSpec("smooth", [1]), "a transform needs a kind and options"),
    ],
)
def test_values_that_are_not_allowed(make, message):
    with pytest.raises(DitQuantError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_group_sizes():
    assert WeightSpec(4).groups(1152) == 1
    assert WeightSpec(4, group_size=64).groups(1152) == 18
    with pytest.raises(DitQuantError) as caught:
        WeightSpec(4, group_size=128).groups(1120, "blocks.3.ff")
    assert str(caught.value) == (
        "group_size 128 does not divide in_features 1120 of 'blocks.3.ff'. Divisors near it: 80, 112, 140, 160."
    )


@given(st.integers(1, 600), st.integers(1, 600))
def test_divisors_that_are_named_divide(group_size, width):
    try:
        check_divides(group_size, width, "x")
        assert width % group_size == 0
    except DitQuantError as error:
        named = [int(d) for d in str(error).rstrip(".").rpartition(": ")[2].split(", ")]
        assert width % group_size != 0
        assert named and all(width % d == 0 for d in named)


LIES = {
    "plan must be a mapping, got list": lambda d: [],
    "plan version None is not a version": lambda d: d.pop("version") and d,
    "plan version True is not a version": lambda d: d | {"version": True},
    "plan version 0 is not a version": lambda d: d | {"version": 0},
    f"plan version {PLAN_VERSION + 1}, this ditquant reads up to {PLAN_VERSION}. Update ditquant": lambda d: (
        d | {"version": PLAN_VERSION + 1}
    ),
    "unknown key of the plan 'layer'. Did you mean 'layers'": lambda d: d | {"layer": {}},
    "needs a list 'schemes' and a mapping 'layers'": lambda d: d | {"schemes": {}},
    "refers to scheme 2 of 2": lambda d: d | {"layers": {"a": 2}},
    "refers to scheme -1 of 2": lambda d: d | {"layers": {"a": -1}},
    "refers to scheme True of 2": lambda d: d | {"layers": {"a": True}},
    "refers to scheme '0' of 2": lambda d: d | {"layers": {"a": "0"}},
    "'recipe' must be a name": lambda d: d | {"recipe": 3},
    "'attention' a mapping or null": lambda d: d | {"attention": [1]},
    "scheme 0 of the plan must be a mapping, got NoneType": lambda d: d | {"schemes": [None]},
    "scheme 0 of the plan is incomplete": lambda d: d | {"schemes": [{}]},
    "rank -1 is not allowed": lambda d: d["schemes"][0].update(rank=-1) or d,
    "transforms must be a list": lambda d: d["schemes"][0].update(transforms="smooth") or d,
    "unknown key of weight of scheme 0 of the plan 'bit'": lambda d: d["schemes"][0]["weight"].update(bit=4) or d,
    "weight bits 400 are not allowed": lambda d: d["schemes"][0]["weight"].update(bits=400) or d,
    "activation of scheme 0 of the plan must be a mapping": lambda d: d["schemes"][0].update(activation=8) or d,
}


@pytest.mark.parametrize("message", LIES)
def test_plans_that_lie_are_refused(message):
    with pytest.raises(DitQuantError) as caught:
        QuantPlan.from_dict(LIES[message](copy.deepcopy(PLAN.to_dict())))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_calibration_prompts_are_kept_as_hashes():
    plan = QuantPlan({}, "r", calibration=(prompt_hash("A  red\ncircle"),))
    assert plan.calibration == (hashlib.sha256(b"a red circle").hexdigest()[:16],)
    assert QuantPlan.from_dict(plan.to_dict()) == plan and plan.hash() != QuantPlan({}, "r").hash()
    assert "calibration" not in QuantPlan({}, "r").to_dict()
    for lie in ("x", ["0123456789abcdeg"], [1], ["0123456789abcdef0"]):
        with pytest.raises(DitQuantError, match="'calibration' must be a list of hashes"):
            QuantPlan.from_dict(plan.to_dict() | {"calibration": lie})


def test_thresholds_are_kept_with_the_plan():
    plan = QuantPlan({}, "r", thresholds=(Threshold("ssim", ">=", 0.8),))
    assert plan.to_dict()["thresholds"] == ["ssim>=0.8"] and "thresholds" not in QuantPlan({}, "r").to_dict()
    assert QuantPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    with pytest.raises(DitQuantError, match="'thresholds' of the plan: unknown metric 'sim'"):
        QuantPlan.from_dict(plan.to_dict() | {"thresholds": ["sim>=0.8"]})
