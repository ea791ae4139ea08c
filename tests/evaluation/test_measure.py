"""Metrics that fit are measured, others are left out with a line that says why."""

import numpy as np
import pytest
import torch
from PIL import Image

from ditquant.errors import DitQuantError
from ditquant.evaluation import Generated, moving_shapes, shapes
from ditquant.evaluation.measure import Measures
from ditquant.evaluation.metrics import METRICS
from ditquant.evaluation.metrics.distributions import squared_mmd
from ditquant.evaluation.networks import Networks
from ditquant.evaluation.networks.found import pictures


def made(*shape: int, seed: int, count: int = 2) -> Generated:
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape, 3)).astype(np.uint8)
    return Generated(list(images), torch.full((count, 4), 1.0 + seed), 1.0)


def test_pictures_have_no_figures_of_videos():
    measures = Measures(["a", "b"])
    assert measures(made(16, 16, seed=0)) == ({}, {})
    values, scores = measures(made(16, 16, seed=1))
    assert values.keys() == {"latent_sqnr_db", *(name for name, metric in METRICS.items() if not metric.videos)}
    assert scores == {} and measures.notes == []


def test_videos_have_all_and_the_reference_its_own():
    measures, truth = Measures(["a", "b"]), made(3, 16, 16, seed=0)
    own, _ = measures(truth)
    values, _ = measures(made(3, 16, 16, seed=1))
    assert values.keys() == {"latent_sqnr_db", *METRICS} and all(len(v) == 2 for v in values.values())
    assert own.keys() == {"flicker", "warp_error"}
    expected = np.abs(np.diff(truth.images[1].astype(float), axis=0)).mean()
    assert own["flicker"][1] == expected and own["flicker"] != values["flicker"]


def test_captions_are_read_from_pictures_and_from_videos():
    rng = np.random.default_rng(0)
    clips = moving_shapes.CLIPS[:40:20]
    videos = [moving_shapes.draw(clip, rng) for clip in clips]
    prompts = [moving_shapes.caption(clip) for clip in clips]
    latents = torch.zeros(2, 4)
    right, _ = Measures(prompts)(Generated(videos, latents, 1.0))
    half, _ = Measures(prompts)(Generated([videos[0], videos[0]], latents, 1.0))
    assert right["caption_accuracy"] == [1.0, 1.0] and half["caption_accuracy"] == [1.0, 0.0]
    assert "caption_accuracy" not in Measures(prompts)(Generated([v[0] for v in videos], latents, 1.0))[0]
    scene = shapes.random_scene(rng)
    pictures = Generated([shapes.draw(scene)], latents[:1], 1.0)
    assert Measures([shapes.caption(scene)])(pictures)[0] == {"caption_accuracy": [1.0]}
    assert "caption_accuracy" not in Measures([*prompts, "a fox"])(Generated([*videos, videos[0]], latents, 1.0))[0]


def test_a_prompt_that_is_no_scene_is_named():
    scene = shapes.random_scene(np.random.default_rng(0))
    measures = Measures([shapes.caption(scene), "a red circle"])
    for _ in range(2):
        values, _ = measures(Generated([shapes.draw(scene)] * 2, torch.ones(2, 4), 1.0))
        assert "caption_accuracy" not in values
    (note,) = measures.notes
    assert note.startswith("caption accuracy left out: prompt 1, 'a red circle', is no scene that can be read back")
    assert shapes.parse(note.split("such as ")[1].split("'")[1]) is not None
    small = Measures([shapes.caption(scene)])
    small(made(32, 32, seed=0, count=1))
    assert small.notes == ["caption accuracy left out: the pictures have the shape (32, 32, 3) and not (64, 64, 3)."]


class Colours:
    """Stands for a feature network: mean colours."""

    def features(self, images):
        return torch.stack([torch.tensor(image).float().mean((0, 1)) for image in images])

    def scores(self, images, prompts):
        return [float(len(prompt)) for prompt in prompts]

    def __call__(self, a, b):
        return (a.float() - b.float()).abs().mean()


def test_networks_add_their_metrics():
    network = Colours()
    real = made(8, 8, seed=5, count=50).images
    measures = Measures(["x" * i for i in range(60)], Networks(network, network, network, real))
    truth, other = made(16, 16, seed=0, count=60), made(16, 16, seed=1, count=60)
    first, second = measures(truth), measures(other)
    assert first[0]["clip_score"] == [float(i) for i in range(60)] and "lpips" not in first[0]
    assert second[0]["lpips"][3] == float(network(torch.tensor(truth.images[3]), torch.tensor(other.images[3])))
    features = [network.features(images) for images in (truth.images, other.images, real)]
    assert second[1] == {
        "kid": squared_mmd(features[0], features[1]),
        "kid_real": squared_mmd(features[2], features[1]),
    }
    assert first[1].keys() == {"kid_real"}
    assert measures.notes == [
        "fid_real left out: fid_real needs at least 1000 real pictures, got 50. Give a folder with more (--real).",
        "fid left out: FID needs at least 1000 pictures, got 60. Give more prompts.",
    ]


def test_class_labels_have_no_text():
    measures = Measures([1, 2], Networks(clip=Colours()))
    assert measures(made(16, 16, seed=0))[0] == {}
    assert measures.notes == ["CLIPScore left out: class labels are no text."]


def test_networks_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("ditquant.evaluation.networks.found.DEFAULT", "nobody/none")
    monkeypatch.setattr("ditquant.evaluation.networks.clip.DEFAULT", "nobody/none")
    found = Networks.find()
    assert (found.lpips, found.clip, found.inception) == (None, None, None)
    assert [note.split(":")[0] for note in found.notes] == [
        "LPIPS left out",
        "FID, KID left out",
        "CLIPScore left out",
    ]
    for options in ({"lpips": tmp_path / "x"}, {"inception": tmp_path / "x"}, {"clip": tmp_path}):
        with pytest.raises(DitQuantError, match=r"there is no file|is no local CLIP model"):
            Networks.find(**options)
    with pytest.raises(DitQuantError, match="need Inception"):
        Networks.find(real=tmp_path)


def test_real_pictures_are_read_in_order(tmp_path):
    for i in (2, 1):
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [int(picture[0, 0, 0]) for picture in pictures(tmp_path)] == [1, 2]
    (tmp_path / "3.png").write_text("broken")
    with pytest.raises(DitQuantError, match=r"cannot read the picture .*3\.png"):
        pictures(tmp_path)
    with pytest.raises(DitQuantError, match="is no folder with pictures"):
        pictures(tmp_path / "none")
