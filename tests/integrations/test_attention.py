"""A pipeline is fitted an attention plan, saved and loaded with it, with and without quantized weights."""

import copy
import shutil

import pytest
import torch
from diffusers import CogVideoXPipeline

import ditquant
from ditquant.attention import TokenGrid, load_plan
from ditquant.errors import DitQuantError
from ditquant.integrations.attention import FILE, plan_of
from ditquant.nn import QuantLinear
from ditquant.recipe import Recipe
from tests.evaluation.video import tiny_video_pipeline
from tests.tiny import inputs, run, tiny

SIZE = {"height": 64, "width": 64, "frames": 9, "steps": 3}
GRID = TokenGrid(3, 8, 8, text=226)
ATTENTION = {"density": 0.9, "qk_bits": 8, "pv_bits": 8}
ALONE = {"name": "alone", "attention": ATTENTION}


def paint(pipeline, steps: int = 3) -> torch.Tensor:
    """Latents of one video."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a red circle",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).frames


@pytest.fixture(scope="module")
def own():
    return paint(tiny_video_pipeline())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline with a plan, what it paints, and where it was saved."""
    pipeline = tiny_video_pipeline()
    plan = ditquant.quantize(pipeline, ALONE, prompts=["a yellow triangle"], settings=SIZE)
    folder = tmp_path_factory.mktemp("made") / "video"
    pipeline.save_pretrained(folder)
    return pipeline, plan, paint(pipeline), folder


def test_the_plan_is_that_of_the_pipeline(made, own):
    pipeline, plan, latents, _ = made
    fitted = plan_of(pipeline.transformer)
    assert plan.layers == {} and plan.recipe == "alone"
    assert plan.attention == {"file": FILE, "crc32": plan.attention["crc32"], **ATTENTION}
    assert fitted.grid == GRID and fitted.steps == (0, 1, 1) and (fitted.blocks, fitted.heads) == (2, 2)
    assert list(fitted.timesteps) == [float(t) for t in pipeline.scheduler.timesteps]
    kept = sum(fitted.kept(bin_, block) for bin_ in range(2) for block in range(2)) / 4
    assert kept == pytest.approx(0.9, abs=0.01)
    assert 1e-4 < (latents - own).norm() / own.norm() < 0.3


def test_it_is_saved_beside_the_weights_and_comes_back(made):
    pipeline, _, latents, folder = made
    assert (folder / "transformer" / FILE).stat().st_size < 10_000
    again = CogVideoXPipeline.from_pretrained(folder)
    assert torch.equal(paint(again), latents)
    assert torch.equal(plan_of(again.transformer).masks, plan_of(pipeline.transformer).masks)
    again.save_pretrained(folder.parent / "again")
    assert load_plan(folder.parent / "again" / "transformer" / FILE).timesteps == plan_of(again.transformer).timesteps
    again.transformer = copy.deepcopy(again.transformer)
    assert torch.equal(paint(again), latents)


def test_another_number_of_steps_goes_by_the_timesteps(made):
    pipeline = made[0]
    bins, clock = [], pipeline.transformer.transformer_blocks[0].attn1.processor.core.clock
    pipeline.transformer.register_forward_pre_hook(lambda *_: bins.append(clock.bin_of(plan_of(pipeline.transformer))))
    paint(pipeline, steps=7)
    assert bins == sorted(bins) and set(bins) == {0, 1} and len(bins) == 7


def test_another_size_is_refused_with_both_shapes(made):
    with pytest.raises(DitQuantError, match=r"attn1 has 274 tokens, the grid of 3x8x8 .* and 226 of text .* has 418"):
        made[0]("a red circle", height=32, width=32, num_frames=9, num_inference_steps=2, output_type="latent")


@pytest.mark.parametrize("lie", ["missing", "other", "cut"])
def test_a_plan_that_is_not_the_one_that_was_saved_is_refused(made, lie, tmp_path):
    folder = tmp_path / "video"
    shutil.copytree(made[3], folder)
    file = folder / "transformer" / FILE
    if lie == "missing":
        file.unlink()
    elif lie == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        other = tiny_video_pipeline()
        ditquant.quantize(
            other, {"name": "x", "attention": {"qk_bits": 4}}, prompts=["a"], settings=SIZE | {"steps": 1}
        )
        other.transformer.save_config(folder / "transformer" / "x")
        shutil.copy(folder / "transformer" / "x" / FILE, file)
    with pytest.raises(DitQuantError, match="attention"):
        CogVideoXPipeline.from_pretrained(folder)


def test_the_three_methods_in_one_recipe(made, tmp_path):
    recipe = Recipe.load("full-w4a8-paro30").to_dict()
    pipeline = tiny_video_pipeline()
    recipe["attention"] |= {"density": 0.9}
    plan = ditquant.quantize(pipeline, recipe, prompts=["a yellow triangle"], settings=SIZE)
    formats = {layer.weight.format for layer in plan.layers.values()}
    assert formats == {"affine", "twin_log"} and plan.attention["density"] == 0.9
    # the attention is fitted to the full-precision model
    assert torch.equal(plan_of(pipeline.transformer).masks, plan_of(made[0].transformer).masks)
    latents = paint(pipeline)
    pipeline.save_pretrained(tmp_path / "full")
    again = CogVideoXPipeline.from_pretrained(tmp_path / "full")
    assert sum(isinstance(m, QuantLinear) for m in again.transformer.modules()) == len(plan.layers)
    assert torch.equal(paint(again), latents)


def test_without_data_the_attention_stays_dense(caplog):
    model = tiny("wan", ffn_dim=64)
    plan = ditquant.quantize(model, {**Recipe.load("rtn-w4a8").to_dict(), "attention": ATTENTION})
    assert plan.attention is None and plan_of(model) is None and "stays dense" in caplog.text
    with pytest.raises(DitQuantError, match="fitted to prompts"):
        ditquant.quantize(tiny("wan"), ALONE)


def test_a_module_is_fitted_to_its_forward():
    model = tiny("wan")
    own = run(model)
    plan = ditquant.quantize(model, {"name": "x", "attention": {"qk_bits": 8, "pv_bits": 8}}, forward=run)
    assert plan.attention["density"] is None and plan_of(model).grid == TokenGrid(2, 2, 2)
    assert 0 < (run(model) - own).norm() < 0.1 * own.norm()
    with pytest.raises(DitQuantError, match="attends by a plan already"):
        ditquant.quantize(model, ALONE, forward=run)


def test_what_cannot_be_fitted_changes_nothing():
    model = tiny("wan")
    own = run(model)
    processors = dict(model.attn_processors)
    cases = [
        ({"density": 0.01}, run, "density 0.01 keeps"),
        ({"density": 0.5}, lambda m: None, "never reached WanTransformer3DModel"),
    ]
    for attention, forward, message in cases:
        if attention["density"] == 0.01:
            given = inputs(model) | {"hidden_states": torch.randn(2, 4, 3, 14, 18)}
            forward = lambda m, given=given: m(**given)  # noqa: E731
        with pytest.raises(DitQuantError, match=message):
            ditquant.quantize(model, {"name": "x", "attention": attention}, forward=forward)
        assert plan_of(model) is None and dict(model.attn_processors) == processors
    assert torch.equal(run(model), own) and "save_config" not in model.__dict__
    with pytest.raises(DitQuantError, match="LatteTransformer3DModel"):
        ditquant.quantize(tiny("latte"), ALONE, forward=run)
    broken = tiny("wan")
    torch.nn.init.constant_(broken.blocks[1].attn1.to_k.weight, 3e38)  # a NaN weight is refused earlier
    with pytest.raises(DitQuantError, match=r"k of head 0 of blocks\.1\.attn1 has NaN"):
        ditquant.quantize(broken, ALONE, forward=run)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"density": 0}, "density 0 is not allowed. Choose a number above 0, at most 1"),
        ({"density": 1.5}, "density 1.5"),
        ({"density": "half"}, "density 'half'"),
        ({"qk_bits": 5}, "qk_bits 5"),
        ({"pv_bits": 16}, "pv_bits 16"),
        ({}, "needs a density, qk_bits or pv_bits"),
        ({"densty": 0.3}, "densty"),
        ({"density": 0.3, "select": "best"}, "best"),
        ({"qk_bits": 8, "select": "mass"}, "give one"),
        ({"density": 0.3, "own_steps": -1}, "own_steps -1"),
        ({"density": 0.3, "sample": 0}, "sample 0"),
        (0.3, "attention of a recipe must be a mapping"),
    ],
    ids=str,
)
def test_a_section_that_is_none_is_refused(attention, message):
    with pytest.raises(DitQuantError, match=message):
        Recipe.load({"name": "x", "attention": attention})
