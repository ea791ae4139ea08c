"""The shipped `video-shapes` is a whole WanPipeline at the size it was trained for, and decodes what it encodes."""

import numpy as np
import pytest
import torch

from ditquant import sources
from ditquant.attention.install import attention_layers, record_attention
from ditquant.evaluation import moving_shapes
from ditquant.evaluation.generate import generate


@pytest.fixture(scope="module")
def pipeline():
    return sources.load_pipeline("video-shapes", torch.float32)


def test_its_parts_are_those_of_wan(pipeline):
    parts = {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None}
    assert type(pipeline).__name__ == "WanPipeline"
    assert parts.pop("tokenizer").startswith("T5Tokenizer")
    assert parts == {
        "vae": "AutoencoderKLWan",
        "text_encoder": "UMT5EncoderModel",
        "scheduler": "UniPCMultistepScheduler",
        "transformer": "WanTransformer3DModel",
    }
    folder = sources.find("video-shapes").local()
    assert sources.stored_dtype(sources.find("video-shapes")) == torch.float16
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 22e6


def test_it_runs_at_the_size_it_was_trained_for(pipeline):
    """Without being told; the tokens are counted where attention sees them."""
    prompts, seen = moving_shapes.prompts(1, seed=5), []
    model = pipeline.transformer
    stop = record_attention(model, lambda block, q, k: seen.append((block, tuple(q.shape))))
    made = generate(pipeline, prompts, seeds=0, steps=2, batch_size=1, progress=False)
    stop()
    assert {shape for _, shape in seen} == {(1, 4, 1280, 64)}
    assert len(attention_layers(model)) == len({block for block, _ in seen}) >= 6
    assert made.latents.shape == (1, 8, 5, 16, 16)
    assert [video.shape for video in made.images] == [(9, 64, 64, 3)]


def test_its_autoencoder_keeps_what_a_video_shows(pipeline):
    rng = np.random.default_rng(0)
    clips = moving_shapes.CLIPS[::45]
    videos = np.stack([moving_shapes.draw(clip, rng) for clip in clips])
    x = torch.from_numpy(videos).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        y = pipeline.vae.decode(pipeline.vae.encode(x).latent_dist.mean).sample
    back = ((y + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
    assert moving_shapes.caption_accuracy(list(back), [moving_shapes.caption(clip) for clip in clips]) == 1
