"""Flow of known motion, and what flicker and warp error say of videos whose steadiness is known."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.registration import optical_flow_ilk

from ditquant.evaluation.metrics import METRICS, flicker, warp_error
from ditquant.evaluation.metrics.flow import optical_flow, visible, warp

SIDE = 64


def texture(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Return a smooth pattern in [0, 1]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 2.5)
    return (noise - noise.min()) / (noise.max() - noise.min())


def moved(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return the picture that `flow` [2, H, W] (x, y), sought from the moved picture back, moves it to."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(float)
    return ndimage.map_coordinates(picture, [y + flow[1], x + flow[0]], order=3, mode="nearest")


def motions() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return {
        "nothing": np.zeros((2, SIDE, SIDE)),
        "less than a pixel": np.stack([np.full((SIDE, SIDE), 0.3), np.full((SIDE, SIDE), -0.6)]),
        "five pixels": np.stack([np.full((SIDE, SIDE), 5.0), np.full((SIDE, SIDE), -3.0)]),
        "zoom": 0.06 * np.stack([x, y]),
        "turn": 0.06 * np.stack([-y, x]),
    }


@pytest.mark.parametrize("name", motions())
def test_flow_of_known_motion(name):
    truth, second = motions()[name], texture()
    first = moved(second, truth)
    flow = optical_flow(torch.tensor(first)[None], torch.tensor(second)[None])[0].numpy()
    ilk_y, ilk_x = optical_flow_ilk(first, second, radius=5)
    inner = (slice(None), slice(10, -10), slice(10, -10))
    mine, theirs = (np.linalg.norm((f - truth)[inner], axis=0).mean() for f in (flow, np.stack([ilk_x, ilk_y])))
    assert mine < 0.15 and mine < 1.1 * theirs + 0.001
    back = warp(torch.tensor(second)[None, None], torch.tensor(flow)[None])[0, 0].numpy()
    assert np.abs(back - first)[10:-10, 10:-10].mean() < 0.01


def test_warping_is_interpolation():
    picture, flow = texture(3), np.random.default_rng(0).normal(size=(2, SIDE, SIDE))
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    expected = ndimage.map_coordinates(picture, [y + flow[1], x + flow[0]], order=1, mode="nearest")
    found = warp(torch.tensor(picture)[None, None], torch.tensor(flow)[None])[0, 0].numpy()
    assert np.allclose(found, expected, atol=1e-9)


def test_what_leaves_the_picture_or_does_not_come_back_is_hidden():
    right = torch.zeros(1, 2, 8, 8)
    right[:, 0] = 3
    assert visible(right, -right)[0].sum(1).tolist() == [5] * 8
    assert not visible(right, right).any()


def video(frames: list[np.ndarray]) -> torch.Tensor:
    grey = np.stack([np.clip(np.round(255 * frame), 0, 255) for frame in frames]).astype(np.uint8)
    return torch.tensor(grey)[..., None].expand(-1, -1, -1, 3)


def pan(steps: int = 4, seed: int = 0) -> list[np.ndarray]:
    wide = texture(seed, 2 * SIDE)
    return [ndimage.shift(wide, (0, -1.5 * i), order=3)[16 : 16 + SIDE, 16 : 16 + SIDE] for i in range(steps)]


def test_flicker_is_the_mean_step_in_levels():
    frames = np.random.default_rng(0).integers(0, 256, (5, 12, 16, 3))
    expected = np.mean([np.abs(frames[i + 1] - frames[i]).mean() for i in range(4)])
    clip = torch.tensor(frames.astype(np.uint8))
    assert flicker(clip, clip).item() == pytest.approx(expected)
    assert flicker(clip, clip[:1].expand(5, -1, -1, -1)).item() == 0


def test_warp_error_is_small_along_the_motion_and_that_of_noise_without():
    steady = video(pan())
    assert warp_error(steady, steady).item() < 1e-4, "it moves as the reference does"
    assert flicker(steady, steady).item() > 2
    rng = np.random.default_rng(0)
    noise = [0.05 * rng.normal(size=(SIDE, SIDE)) for _ in range(4)]
    still = [texture()] * 4
    flickering = video([frame + n for frame, n in zip(still, noise, strict=True)])
    # of two independent noises, no motion to warp along
    assert warp_error(video(still), flickering).item() == pytest.approx(2 * 0.05**2, rel=0.1)
    frozen = video([pan()[0]] * 4)
    assert warp_error(steady, frozen).item() > 20 * warp_error(steady, steady).item()


def test_videos_only_and_the_reference_too():
    picture, clip = np.zeros((16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8)
    for name in ("flicker", "warp_error"):
        assert METRICS[name].takes([clip]) and not METRICS[name].takes([picture])
        assert not METRICS[name].takes([clip[:1]])
        assert METRICS[name]([clip], [clip]).tolist() == [0.0]
        assert METRICS[name].better == "lower"
