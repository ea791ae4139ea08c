"""`ditquant generate`: one picture or a folder of them, by seed, the same whatever the batch."""

import json

import numpy as np
import pytest
from diffusers import DiTPipeline
from PIL import Image

from ditquant.cli.generate import write_picture
from tests.cli.command import contents, refused, succeed
from tests.cli.command import ditquant as command
from tests.tiny import PROMPTS, tiny, tiny_pixart_pipeline

FAST = ("--steps", 2)


def picture(path):
    return np.asarray(Image.open(path))


def test_one_picture(quantized, tmp_path):
    run = command("generate", quantized, "--prompt", PROMPTS[0], "-o", tmp_path / "fox.png", *FAST)
    assert run.code == 0 and run.out.startswith("1 picture in ") and run.err == ""
    assert picture(tmp_path / "fox.png").shape == (32, 32, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["fox.png"]


def test_seeds_and_steps_change_the_picture_and_equal_ones_do_not(quantized, tmp_path):
    for name, options in {"a": (), "b": (), "c": ("--seed", 5), "d": ("--steps", 3), "e": ("--guidance", 1)}.items():
        options = options if "--steps" in options else (*FAST, *options)
        succeed("generate", quantized, "--prompt", PROMPTS[0], "-o", tmp_path / f"{name}.png", *options)
    a, b, *others = (picture(tmp_path / f"{name}.png") for name in "abcde")
    assert np.array_equal(a, b)
    assert all(not np.array_equal(a, other) for other in others)


def test_many_pictures_are_those_of_their_seeds(quantized, prompts, tmp_path):
    out = succeed("generate", quantized, "--prompts", prompts, "--seed", 3, "-o", tmp_path / "many", *FAST)
    succeed("generate", quantized, "--prompts", prompts, "--seed", 3, "-o", tmp_path / "1", "--batch-size", 1, *FAST)
    succeed("generate", quantized, "--prompt", PROMPTS[1], "--seed", 4, "-o", tmp_path / "one.png", *FAST)
    assert out.startswith("2 pictures in ")
    assert contents(tmp_path / "many").keys() == {"0000.png", "0001.png"} == contents(tmp_path / "1").keys()
    for name in ("0000.png", "0001.png"):
        difference = picture(tmp_path / "many" / name).astype(int) - picture(tmp_path / "1" / name)
        assert abs(difference).max() <= 1
    assert abs(picture(tmp_path / "many" / "0001.png").astype(int) - picture(tmp_path / "one.png")).max() <= 1


def test_full_precision_and_size(model, tmp_path):
    size = ("--height", 48, "--width", 40)
    succeed("generate", model, "--prompt", "x", "-o", tmp_path / "a.jpg", *size, *FAST)
    assert picture(tmp_path / "a.jpg").shape == (48, 40, 3)


def test_a_folder_takes_one_picture_and_overwriting_is_asked_for(quantized, tmp_path):
    arguments = ("generate", quantized, "--prompt", "x", "-o", tmp_path / "folder", *FAST)
    succeed(*arguments)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["0000.png"]
    before = contents(tmp_path)
    refused(command(*arguments), "0000.png exists", "--overwrite")
    assert contents(tmp_path) == before
    succeed(*arguments, "--overwrite", "--seed", 9)
    assert contents(tmp_path).keys() == before.keys() and contents(tmp_path) != before


@pytest.fixture(scope="module")
def class_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit") / "dit"
    parts = tiny_pixart_pipeline()
    DiTPipeline(tiny("dit", num_embeds_ada_norm=1000), parts.vae, parts.scheduler).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(i): f"word{i}, other{i}" for i in range(10)}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_classes_are_numbers_or_words(class_model, tmp_path):
    (tmp_path / "classes.txt").write_text("3\nword4\n")
    classes = ("--prompts", tmp_path / "classes.txt")
    succeed("quantize", class_model, *classes, "-o", tmp_path / "q")
    succeed("generate", tmp_path / "q", *classes, "-o", tmp_path / "many", *FAST)
    succeed("generate", tmp_path / "q", "--prompt", 4, "--seed", 1, "-o", tmp_path / "four.png", *FAST)
    assert len(contents(tmp_path / "many")) == 2
    difference = picture(tmp_path / "many" / "0001.png").astype(int) - picture(tmp_path / "four.png")
    assert abs(difference).max() <= 1


@pytest.mark.parametrize("label, message", [("wrd4", "Did you mean 'word4'"), ("1000", "from 0 to 9")])
@pytest.mark.parametrize("verb", ["quantize", "generate"])
def test_unknown_classes_are_refused(class_model, tmp_path, verb, label, message):
    (tmp_path / "classes.txt").write_text(f"3\n{label}\n")
    refused(command(verb, class_model, "--prompts", tmp_path / "classes.txt", "-o", tmp_path / "out"), label, message)
    assert [p.name for p in tmp_path.iterdir()] == ["classes.txt"]


def test_a_video_becomes_an_animation(tmp_path):
    video = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    write_picture(video, tmp_path / "video.gif")
    with Image.open(tmp_path / "video.gif") as made:
        assert made.n_frames == 3
