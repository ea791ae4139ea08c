"""What is drawn is read back with its motion, also blurred and noisy; what is wrong does not go unseen."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ditquant.evaluation import moving_shapes, shapes
from ditquant.evaluation.moving_shapes import CLIPS, FRAMES, SHAPES, SIZE, caption, draw, read

SOME = CLIPS[::11]  # every word of every kind


@pytest.mark.parametrize("size, frames", [(SIZE, FRAMES), (24, 5), (33, 6)])
def test_read_inverts_draw(size, frames):
    rng = np.random.default_rng(1)
    for clip in SOME:
        video = draw(clip, rng, size, frames)
        assert video.shape == (frames, size, size, 3) and video.dtype == np.uint8
        assert read(video) == clip


def test_blur_noise_and_paler_colours_are_read_through():
    """What an autoencoder does to a video: soft edges, also in time, a few levels of noise and of contrast."""
    rng = np.random.default_rng(2)
    for clip in SOME:
        video = gaussian_filter(draw(clip, rng).astype(np.float64), (0.3, 0.7, 0.7, 0))
        video = 0.92 * video + 0.08 * 128 + rng.normal(0, 8, video.shape)
        assert read(np.clip(video, 0, 255).astype(np.uint8)) == clip


def test_parse_inverts_caption_and_knows_nothing_else():
    assert [moving_shapes.parse(caption(clip)) for clip in CLIPS] == list(CLIPS)
    scene = shapes.prompts(1)[0]
    for text in ("", "a red fox", scene, "a red circle moves right on a red ground"):
        assert moving_shapes.parse(text) is None
    assert shapes.parse(caption(CLIPS[0])) is None


def test_every_wrong_word_is_seen():
    rng = np.random.default_rng(3)
    words = {"shape": SHAPES, "direction": tuple(moving_shapes.DIRECTIONS)}
    words |= dict.fromkeys(("colour", "ground"), tuple(moving_shapes.COLOURS))
    for clip in SOME:
        for key, allowed in words.items():
            other = next(w for w in allowed if w not in (clip.shape, clip.direction, clip.colour, clip.ground))
            assert moving_shapes.caption_accuracy([draw(replace(clip, **{key: other}), rng)], [caption(clip)]) == 0, key


def test_motion_that_no_caption_tells_is_refused():
    clip, rng = CLIPS[0], np.random.default_rng(4)
    video = draw(clip, rng)
    assert read(video[::-1]) == replace(clip, direction="left")
    assert read(np.repeat(video[:1], FRAMES, 0)) is None  # stands
    assert read(np.concatenate([video, video[-2::-1]])) is None  # comes back
    assert read(np.concatenate([video, video[-2:0:-1]])) is None  # turns
    aslant = np.stack([np.roll(frame, 3 * i, 0) for i, frame in enumerate(draw(clip, rng, 96))])
    assert read(aslant) is None
    assert read(video[rng.permutation(FRAMES)]) != clip


def test_damage_is_not_read_as_right():
    rng = np.random.default_rng(5)
    for clip in SOME:
        video = draw(clip, rng)
        gone, second, torn = video.copy(), video.copy(), video.copy()
        gone[4] = video[0, 0, 0]
        second[:, :10, -10:] = moving_shapes.COLOURS[clip.colour]
        torn[:, ::2] = rng.integers(0, 256, torn[:, ::2].shape)
        for wrong in (gone, second, torn, np.zeros_like(video), rng.permuted(video, axis=1)):
            assert read(wrong) != clip


def test_the_held_out_side_is_disjoint_and_has_every_word():
    trained = set(moving_shapes.prompts(1000, held_out=False))
    unseen = set(moving_shapes.prompts(1000))
    assert not trained & unseen and len(trained | unseen) == len(CLIPS)
    assert {word for text in unseen for word in text.split()} == {word for text in trained for word in text.split()}
    assert 64 <= len(unseen) < 0.25 * len(CLIPS)


def test_prompts_are_seeded_and_do_not_repeat_while_there_are_others():
    assert moving_shapes.prompts(60, seed=3) == moving_shapes.prompts(60, seed=3) != moving_shapes.prompts(60, seed=4)
    assert len(set(moving_shapes.prompts(64))) == 64


def test_caption_accuracy_is_a_share():
    rng = np.random.default_rng(6)
    videos = [draw(clip, rng) for clip in SOME[:4]]
    texts = [caption(clip) for clip in SOME[:4]]
    assert moving_shapes.caption_accuracy(videos, texts) == 1.0
    assert moving_shapes.caption_accuracy([videos[0], *videos[:3]], texts) == 0.25
    with pytest.raises(ValueError, match="Write them like"):
        moving_shapes.caption_accuracy(videos[:1], ["a fox"])
