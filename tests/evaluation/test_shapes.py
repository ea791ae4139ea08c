"""What is drawn is read back, what is said is understood, and damage does not go unseen."""

from dataclasses import replace

import numpy as np
import pytest

from ditquant.evaluation import shapes


def scenes(count: int, seed: int = 0, held_out: bool = False) -> list[shapes.Scene]:
    rng = np.random.default_rng(seed)
    return [shapes.random_scene(rng, held_out) for _ in range(count)]


def test_read_inverts_draw_with_jitter_and_noise():
    rng = np.random.default_rng(1)
    for scene in scenes(300):
        clean = shapes.draw(scene, rng)
        noisy = np.clip(clean + rng.normal(0, 8, clean.shape), 0, 255).astype(np.uint8)
        assert shapes.read(clean) == scene
        assert shapes.read(noisy) == scene


def test_parse_inverts_caption_in_any_order():
    rng = np.random.default_rng(2)
    for scene in scenes(300):
        assert shapes.parse(shapes.caption(scene)) == scene
        assert shapes.parse(shapes.caption(scene, rng)) == scene


@pytest.mark.parametrize(
    "text", ["", "a red fox in the snow", "a large red circle on a blue ground", "on a red ground"]
)
def test_other_text_is_no_scene(text):
    assert shapes.parse(text) is None


def test_the_held_out_side_is_disjoint():
    seen, unseen = set(scenes(500)), set(scenes(200, held_out=True))
    assert not seen & unseen
    assert all(shapes.is_held_out(s) for s in unseen) and not any(shapes.is_held_out(s) for s in seen)
    trained = {shapes.parse(p) for p in shapes.prompts(300, held_out=False)}
    assert not trained & {shapes.parse(p) for p in shapes.prompts(300)}


def test_prompts_are_seeded_and_different():
    assert shapes.prompts(50, seed=3) == shapes.prompts(50, seed=3) != shapes.prompts(50, seed=4)
    assert len(set(shapes.prompts(50))) == 50


def other(words, word: str, without: str = "") -> str:
    return next(w for w in words if w not in (word, without))


def test_a_wrong_item_is_seen():
    for scene in scenes(60, seed=5):
        item, *rest = scene.items
        changes = {
            "shape": other(shapes.SHAPES, item.shape),
            "colour": other(shapes.COLOURS, item.colour, scene.ground),
            "size": other(shapes.RADIUS, item.size),
            "place": next(p for p in shapes.PLACES if p not in {i.place for i in scene.items}),
        }
        for key, value in changes.items():
            wrong = shapes.draw(shapes.Scene(scene.ground, (replace(item, **{key: value}), *rest)))
            assert shapes.caption_accuracy([wrong], [shapes.caption(scene)]) == 0, key
        missing = shapes.Scene(scene.ground, tuple(rest))
        assert shapes.read(shapes.draw(missing)) != scene


def test_damage_is_not_read_as_right():
    rng = np.random.default_rng(6)
    for scene in scenes(40, seed=6):
        picture = shapes.draw(scene, rng)
        half = picture.copy()
        half[32:] = rng.integers(0, 256, half[32:].shape)
        assert shapes.read(half) != scene
        assert shapes.read(rng.permuted(picture.reshape(-1, 3), axis=0).reshape(picture.shape)) != scene
        assert shapes.read(np.zeros_like(picture)) is None
        pale = (0.2 * picture + 0.8 * picture.mean()).astype(np.uint8)
        assert shapes.read(pale) != scene


def test_caption_accuracy_is_a_share():
    found = scenes(4, seed=7)
    pictures = [shapes.draw(s) for s in found]
    texts = [shapes.caption(s) for s in found]
    assert shapes.caption_accuracy(pictures, texts) == 1.0
    assert shapes.caption_accuracy(pictures[1:] + pictures[:1], texts) == 0.0
    assert shapes.caption_accuracy([pictures[0], *pictures[:3]], [texts[0], *texts[1:]]) == 0.25
    with pytest.raises(ValueError, match="Write them like"):
        shapes.caption_accuracy(pictures[:1], ["a fox"])
