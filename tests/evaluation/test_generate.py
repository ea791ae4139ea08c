"""The same pictures whatever the batch, the latents that were decoded, and a pipeline left as it was."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
)

from ditquant.errors import DitQuantError
from ditquant.evaluation import generate
from ditquant.evaluation.latents import join, recorded_latents
from ditquant.evaluation.metrics import sqnr_db
from tests.evaluation.video import tiny_video_pipeline
from tests.tiny import PROMPTS, paint, tiny, tiny_pixart_pipeline

# diffusers' solver turns tensors into arrays in a way that newer numpy versions announce the end of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUICK = {"steps": 2, "progress": False}


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pixart_pipeline()


def test_pictures_are_the_pipelines_own(pipeline):
    made = generate(pipeline, PROMPTS[:2], seeds=0, **QUICK)
    expected = np.round(paint(pipeline, PROMPTS[:2], steps=2, seed=0) * 255).astype(np.uint8)
    assert all(np.array_equal(a, b) for a, b in zip(made.images, expected, strict=True))
    assert made.images[0].shape == (32, 32, 3) and made.images[0].dtype == np.uint8
    assert made.seconds > 0


def test_a_seed_gives_a_picture_whatever_the_batch(pipeline):
    together = generate(pipeline, PROMPTS, seeds=[5, 6, 7, 8], batch_size=4, **QUICK)
    split = generate(pipeline, PROMPTS, seeds=5, batch_size=3, **QUICK)
    alone = generate(pipeline, PROMPTS[3:], seeds=[8], batch_size=1, **QUICK)
    assert sqnr_db(together.latents, split.latents).min() > 100
    assert sqnr_db(together.latents[3:], alone.latents).min() > 100
    steps = [np.abs(a.astype(int) - b).max() for a, b in zip(together.images, split.images, strict=True)]
    assert max(steps) <= 1
    other = generate(pipeline, PROMPTS[3:], seeds=[9], **QUICK)
    assert sqnr_db(alone.latents, other.latents).max() < 20


def test_latents_are_the_final_ones_from_one_run(pipeline):
    calls = []
    handle = pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    made = generate(pipeline, PROMPTS[:1], seeds=3, **QUICK)
    handle.remove()
    assert len(calls) == 2, "one forward a step"
    final = pipeline(
        PROMPTS[:1],
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(3)],
        use_resolution_binning=False,
        clean_caption=False,
        output_type="latent",
    ).images
    assert made.latents.dtype == torch.float32
    assert torch.equal(made.latents, final / pipeline.vae.config.scaling_factor)


def test_the_pipeline_is_left_as_it_was(pipeline):
    quiet, decode = pipeline._progress_bar_config, pipeline.vae.decode
    pipeline.set_progress_bar_config(desc="mine", disable=False)
    generate(pipeline, PROMPTS[:1], seeds=0, **QUICK)
    with pytest.raises(RuntimeError), recorded_latents(pipeline):
        raise RuntimeError
    assert "decode" not in vars(pipeline.vae) and pipeline.vae.decode == decode
    assert pipeline._progress_bar_config == {"desc": "mine", "disable": False}
    del pipeline._progress_bar_config
    generate(pipeline, PROMPTS[:1], seeds=0, **QUICK)
    assert not hasattr(pipeline, "_progress_bar_config")
    pipeline.set_progress_bar_config(**quiet)


def test_one_bar_over_prompts(pipeline, capsys, monkeypatch):
    monkeypatch.setattr("ditquant.progress.DELAY_S", 0)
    before = pipeline._progress_bar_config
    pipeline.set_progress_bar_config()
    generate(pipeline, PROMPTS, seeds=0, steps=2, batch_size=2)
    pipeline.set_progress_bar_config(**before)
    shown = capsys.readouterr().err
    assert "4/4" in shown and "2/2" not in shown
    generate(pipeline, PROMPTS[:1], seeds=0, **QUICK)
    assert capsys.readouterr().err == ""


def test_size_and_guidance_reach_the_pipeline(pipeline):
    wide = generate(pipeline, PROMPTS[:1], seeds=0, height=32, width=48, **QUICK)
    assert wide.images[0].shape == (32, 48, 3)
    strong = generate(pipeline, PROMPTS[:1], seeds=0, guidance=9.0, **QUICK)
    weak = generate(pipeline, PROMPTS[:1], seeds=0, guidance=1.0, **QUICK)
    assert not torch.equal(strong.latents, weak.latents)


@pytest.mark.parametrize(
    ("prompts", "given", "message"),
    [
        ([], {}, "at least one prompt"),
        ("a fox", {}, "must be a list"),
        ([3], {}, "needs prompts of text, got 3"),
        (["a"], {"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        (["a"], {"batch_size": 0}, "batch_size 0 is not allowed"),
        (["a"], {"frames": 5}, r"PixArtAlphaPipeline takes no frames\. Allowed: steps, guidance, height, width"),
    ],
)
def test_bad_input(pipeline, prompts, given, message):
    with pytest.raises(DitQuantError, match=message):
        generate(pipeline, prompts, **{"seeds": 0, "progress": False} | given)


def test_black_pictures_are_an_error():
    pipeline = tiny_pixart_pipeline()
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(DitQuantError, match="autoencoder made NaN of finite latents of prompt 'a green square'"):
        generate(pipeline, PROMPTS[1:2], seeds=0, **QUICK)
    with torch.no_grad():
        pipeline.transformer.proj_out.bias.fill_(torch.nan)
    with pytest.raises(DitQuantError, match=r"latents of prompt 'a green square' are NaN .* would be black"):
        generate(pipeline, PROMPTS[1:2], seeds=0, **QUICK)
    assert "decode" not in vars(pipeline.vae)


def tiny_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    options = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16}
    return AutoencoderKL(**options, mid_block_add_attention=False).eval()


def test_class_labels():
    transformer = tiny("dit", num_embeds_ada_norm=1000)
    pipeline = DiTPipeline(transformer, tiny_vae(), DDIMScheduler(), id2label={7: "cock, rooster"})
    by_id, by_word = (generate(pipeline, [p], seeds=1, **QUICK) for p in (7, "cock"))
    assert torch.equal(by_id.latents, by_word.latents) and by_id.latents.shape == (1, 4, 8, 8)
    assert not torch.equal(by_id.latents, generate(pipeline, ["8"], seeds=1, **QUICK).latents)
    for label, message in ((1000, "class label 1000 .* 0 to 999"), ("cok", "Did you mean 'cock'")):
        with pytest.raises(DitQuantError, match=message):
            generate(pipeline, [label], seeds=1, **QUICK)
    with pytest.raises(DitQuantError, match=r"takes no height\. Allowed: steps, guidance\."):
        generate(pipeline, [7], seeds=1, height=64, **QUICK)


def test_video():
    pipeline = tiny_video_pipeline()
    made = generate(pipeline, PROMPTS[:2], seeds=0, frames=9, height=16, width=16, batch_size=1, **QUICK)
    assert made.latents.shape == (2, 4, 3, 4, 4)
    assert [video.shape for video in made.images] == [(9, 16, 16, 3)] * 2


def test_latents_of_frames_are_joined_to_samples():
    frames = torch.arange(2 * 5 * 3.0).view(10, 3, 1, 1)
    joined = join([frames[:7], frames[7:]], batch=2)
    assert joined.shape == (2, 5, 3, 1, 1) and torch.equal(joined.flatten(0, 1), frames)
