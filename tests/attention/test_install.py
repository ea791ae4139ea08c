"""Models of diffusers under a plan: a dense plan changes nothing, a sparse one follows the steps."""

import pytest
import torch

from ditquant.attention import (
    AttentionPlan,
    StepClock,
    TokenGrid,
    apply_plan,
    attend,
    fit_attention,
    record_attention,
    step_bins,
)
from ditquant.attention.bits import pack_mask
from ditquant.attention.install import PlannedCore, attention_layers
from ditquant.errors import DitQuantError
from tests.attention.maps import some_mask
from tests.tiny import HEADS, TEXT_TOKENS, inputs, run, tiny

# the grid of the tiny models' inputs, and their self-attention layers
GRIDS = {
    "cogvideox": (TokenGrid(2, 2, 2, text=TEXT_TOKENS), 2),
    "flux": (TokenGrid(1, 4, 4, text=TEXT_TOKENS), 4),
    "hunyuan_video": (TokenGrid(2, 2, 2, text=TEXT_TOKENS, text_first=False), 4),
    "pixart": (TokenGrid(1, 4, 4), 2),
    "sd3": (TokenGrid(1, 4, 4, text=TEXT_TOKENS, text_first=False), 3),
    "wan": (TokenGrid(2, 2, 2), 2),
}


def orders(grid: TokenGrid, blocks: int) -> torch.Tensor:
    """All candidates in turn."""
    candidates = grid.candidates()
    return torch.tensor([candidates[i % len(candidates)] for i in range(blocks * HEADS)]).view(blocks, HEADS).byte()


def large(name: str):
    """A model, its inputs and grid with several tiles."""
    model, given = tiny(name), None
    if name == "wan":
        given = inputs(model) | {
            "hidden_states": torch.randn(1, 4, 3, 14, 18, generator=torch.Generator().manual_seed(0))
        }
        given |= {"encoder_hidden_states": given["encoder_hidden_states"][:1], "timestep": given["timestep"][:1]}
        return model, given, TokenGrid(3, 7, 9)
    given = inputs(model)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(12.0), torch.arange(13.0))
    noise = torch.randn(2, 156, 8, generator=torch.Generator().manual_seed(0))
    return model, given | {"hidden_states": noise, "img_ids": ids}, TokenGrid(1, 12, 13, text=TEXT_TOKENS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", GRIDS)
def test_a_dense_plan_gives_the_models_own_output(name, dtype):
    model, (grid, blocks) = tiny(name).to(dtype), GRIDS[name]
    own = run(model)
    apply_plan(model, AttentionPlan(grid, orders(grid, blocks)))
    planned = run(model)
    assert planned.dtype == own.dtype
    assert (planned - own).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2) * own.abs().max()


@pytest.mark.parametrize("rotary", [True, False])
def test_cogvideox_with_and_without_rotary_positions(rotary):
    model = tiny("cogvideox", use_rotary_positional_embeddings=rotary)
    given = inputs(model)
    if rotary:
        angle = torch.rand(8, 16, generator=torch.Generator().manual_seed(0))
        given["image_rotary_emb"] = (angle.cos(), angle.sin())
    grid, blocks = GRIDS["cogvideox"]
    with torch.no_grad():
        own = model(**given)[0]
        apply_plan(model, AttentionPlan(grid, orders(grid, blocks)))
        assert (model(**given)[0] - own).abs().max() <= 1e-5 * own.abs().max()


@pytest.mark.parametrize("name", GRIDS)
def test_recording_changes_nothing_and_sees_what_attention_sees(name):
    model, (grid, blocks) = tiny(name), GRIDS[name]
    own, seen = run(model), []
    stop = record_attention(model, lambda block, q, k: seen.append((0, block, q, k)))
    assert torch.allclose(run(model), own, atol=1e-6)
    # HunyuanVideo's inputs have padded text, and its samples are seen one by one without it
    each, there = (2, grid.tokens - 1) if name == "hunyuan_video" else (1, grid.tokens)
    assert [block for _, block, _, _ in seen] == [i for i in range(blocks) for _ in range(each)]
    assert len(attention_layers(model)) == blocks
    assert {tuple(q.shape) for _, _, q, _ in seen} == {(2 // each, HEADS, there, 16)}
    stop()
    assert torch.equal(run(model), own) and len(seen) == each * blocks
    apply_plan(model, fit_attention(seen, grid, density=1.0).plan)
    assert (run(model) - own).abs().max() <= 1e-5 * own.abs().max()


@pytest.mark.parametrize("name", ["flux", "wan"])
@torch.no_grad()
def test_a_sparse_plan_uses_the_mask_of_the_step(name):
    model, given, grid = large(name)
    blocks = len(attention_layers(model))
    masks = pack_mask(some_mask(grid, 2 * blocks * HEADS, 0.4)).view(2, blocks, HEADS, -1)
    plan = AttentionPlan(grid, orders(grid, blocks), masks, steps=step_bins(3, own=1), density=0.4)
    own, clock, outputs = model(**given)[0], StepClock(), []
    undo = apply_plan(model, plan, clock)
    for timestep in (0.9, 0.9, 0.5, 0.1, 0.9):
        fixed = given | {"timestep": given["timestep"] * 0 + timestep}
        outputs.append((model(**fixed)[0], clock.step))
    assert [step for _, step in outputs] == [0, 0, 1, 2, 0]
    assert torch.equal(outputs[0][0], outputs[1][0]) and torch.equal(outputs[0][0], outputs[4][0])
    assert (outputs[0][0] - own).abs().max() > 1e-4 * own.abs().max()
    undo()
    assert torch.equal(model(**given)[0], own)
    model(**given | {"timestep": given["timestep"] * 0})
    assert clock.step == 0


@torch.no_grad()
def test_wan_from_an_image_keeps_its_cross_attention():
    model = tiny("wan", image_dim=12, added_kv_proj_dim=HEADS * 16)
    draw = torch.Generator().manual_seed(0)
    given = inputs(model) | {
        "encoder_hidden_states": torch.randn(2, 512, 24, generator=draw),
        "encoder_hidden_states_image": torch.randn(2, 6, 12, generator=draw),
    }
    own = model(**given)[0]
    before = {name: processor for name, processor in model.attn_processors.items() if "attn2" in name}
    apply_plan(model, AttentionPlan(GRIDS["wan"][0], orders(*GRIDS["wan"])))
    assert (model(**given)[0] - own).abs().max() <= 1e-5 * own.abs().max()
    assert all(model.attn_processors[name] is processor for name, processor in before.items())


@torch.no_grad()
def test_hunyuan_video_never_attends_to_padding():
    model, given = tiny("hunyuan_video"), inputs(tiny("hunyuan_video"))
    given["hidden_states"] = torch.randn(2, 4, 3, 14, 18, generator=torch.Generator().manual_seed(0))
    given["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    grid, blocks = TokenGrid(3, 7, 9, text=TEXT_TOKENS, text_first=False), 4
    masks = pack_mask(some_mask(grid, blocks * HEADS, 0.4)).view(1, blocks, HEADS, -1)
    own = model(**given)[0]
    apply_plan(model, AttentionPlan(grid, orders(grid, blocks), masks, density=0.4))
    sparse = model(**given)[0]
    assert (sparse - own).abs().max() > 1e-4 * own.abs().max()
    given["encoder_hidden_states"][0, 3:] = 7.0
    assert torch.equal(model(**given)[0], sparse)
    core = model.transformer_blocks[0].attn.processor.core
    q, k, v = (torch.randn(1, HEADS, 189 + 3, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    less = TokenGrid(3, 7, 9, text=3, text_first=False)
    mask = core.plan.mask(0, 0)[:, :3, :3]
    assert torch.equal(core(q, k, v), attend(q, k, v, grid=less, order=core.plan.order(0), mask=mask))
    holes = torch.tensor([1, 0, 1]).bool().repeat(65)[: 189 + 3].view(1, 1, 1, -1)
    with pytest.raises(DitQuantError, match="padding at the end"):
        model.transformer_blocks[0].attn(
            torch.zeros(1, 189, 32), encoder_hidden_states=torch.zeros(1, 3, 32), attention_mask=holes
        )


@pytest.mark.parametrize("text", [0, 2, 70])
def test_text_after_the_video_may_have_another_length(text):
    fitted, grid = TokenGrid(3, 7, 9, text=9, text_first=False), TokenGrid(3, 7, 9, text, text_first=False)
    mask = some_mask(fitted, HEADS, 0.4) | torch.eye(4, dtype=torch.bool)
    plan = AttentionPlan(fitted, orders(fitted, 1), pack_mask(mask)[None, None], density=0.4)
    q, k, v = (torch.randn(1, HEADS, grid.tokens, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    wide = torch.zeros(HEADS, grid.tiles, grid.tiles, dtype=torch.bool)
    side = min(grid.tiles, fitted.tiles)
    wide[:, :side, :side] = mask[:, :side, :side]
    found = PlannedCore(plan, 0, StepClock(), "attn")(q, k, v)
    assert torch.equal(found, attend(q, k, v, grid=grid, order=plan.order(0), mask=wide))
    first = AttentionPlan(TokenGrid(3, 7, 9, text=9), orders(fitted, 1))
    with pytest.raises(DitQuantError, match=f"attn has {grid.tokens} tokens, .* 9 of text before .* has 198"):
        PlannedCore(first, 0, StepClock(), "attn")(q, k, v)


def test_a_core_attends_with_what_the_plan_says():
    grid, clock = TokenGrid(3, 7, 9), StepClock(steps=4)
    masks = pack_mask(some_mask(grid, 2 * 2 * HEADS, 0.4)).view(2, 2, HEADS, -1)
    plan = AttentionPlan(grid, orders(grid, 2), masks, steps=(0, 1), qk_bits=8, pv_bits=4, density=0.4)
    q, k, v = (torch.randn(1, HEADS, grid.tokens, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    core = PlannedCore(plan, 1, clock, "blocks.1.attn1")
    for timestep, bin_ in ((9, 0), (8, 0), (7, 1), (6, 1)):
        clock.see(timestep)
        settings = {"grid": grid, "order": plan.order(1), "mask": plan.mask(bin_, 1), "qk_bits": 8, "pv_bits": 4}
        assert torch.equal(core(q, k, v), attend(q, k, v, **settings))
    q[0, 1, 3, 3] = float("nan")
    with pytest.raises(DitQuantError, match=r"q of head 1 of blocks\.1\.attn1"):
        core(q, k, v)


def test_the_clock_hears_the_model():
    model = tiny("pixart")
    grid, blocks = GRIDS["pixart"]
    given, seen, clock = inputs(model), [], StepClock()
    apply_plan(model, AttentionPlan(grid, orders(grid, blocks), steps=(0, 0, 0)), clock)
    with torch.no_grad():
        for timestep in (900, 900, 500, 20, 900, 500):
            model(**given | {"timestep": torch.full((2,), timestep)})
            seen.append(clock.step)
        assert seen == [0, 0, 1, 2, 0, 1]
        model(**given | {"timestep": torch.full((2,), 400)})
        with pytest.raises(DitQuantError, match="step 3 is outside of 3"):
            model(**given | {"timestep": torch.full((2,), 300)})


def test_refusals():
    model, (grid, blocks) = tiny("pixart"), GRIDS["pixart"]
    with pytest.raises(DitQuantError, match="LatteTransformer3DModel"):
        apply_plan(tiny("latte"), AttentionPlan(grid, orders(grid, blocks)))
    with pytest.raises(DitQuantError, match=r"3 blocks of 2 heads .* has 2 blocks of 2 heads"):
        apply_plan(model, AttentionPlan(grid, orders(grid, 3)))
    apply_plan(model, AttentionPlan(TokenGrid(1, 4, 5), torch.zeros(2, 2, dtype=torch.uint8)))
    with pytest.raises(DitQuantError, match=r"transformer_blocks.0.attn1 has 16 tokens, .* has 20"):
        run(model)
    with pytest.raises(DitQuantError, match="no attention mask"):
        model(**inputs(model) | {"attention_mask": torch.tensor([[1] * 15 + [0]] * 2)})
