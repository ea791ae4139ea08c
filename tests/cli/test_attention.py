"""`ditquant quantize --attention paro`: saved beside the model, used by generate, refused in one line."""

import json

import pytest

from ditquant.attention import load_plan
from tests.cli.command import contents, refuse, succeed
from tests.evaluation.video import tiny_video_pipeline

SIZE = ("--height", 64, "--width", 64, "--frames", 9, "--steps", 3)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "video"
    tiny_video_pipeline().save_pretrained(folder)
    return folder


def test_attention_alone_leaves_the_weights_and_is_used(video, prompts, tmp_path):
    out = tmp_path / "sparse"
    words = ("--attention", "paro", "--density", 0.9, "--qk", 8, "--pv", 8, "--prompts", prompts, *SIZE)
    said = succeed("quantize", video, *words, "-o", out)
    assert "attention on 3x8x8 visual tokens and 226 of text before them in 2 layers keeps 90 % of the tiles" in said
    plan = load_plan(out / "transformer" / "attention.safetensors")
    assert (plan.density, plan.qk_bits, plan.pv_bits, plan.bins) == (0.9, 8, 8, 2)
    config = json.loads((out / "transformer" / "config.json").read_text())["quantization_config"]
    assert config["plan"]["recipe"] == "paro90" and config["plan"]["layers"] == {}
    pictures = []
    for model in (video, out):
        file = tmp_path / f"{model.name}.png"
        succeed("generate", model, "--prompt", "a red circle", "-o", file, *SIZE)
        pictures.append(file.read_bytes())
    assert pictures[0] != pictures[1]
    said = succeed("inspect", out)
    assert "attention: 90 % of the tiles, QK in 8 bits, PV in 8 bits" in said


def test_with_a_recipe_both_are_done(video, prompts, tmp_path):
    words = ("--recipe", "rtn-w8a8", "--attention", "paro", "--qk", 8, "--prompts", prompts, *SIZE)
    said = succeed("quantize", video, *words, "-o", tmp_path / "both")
    assert "keeps all tiles, QK in 8 bits" in said and "layers with rtn-w8a8-paro" in said


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("quantize MODEL -o new --attention paro", ["--density, --qk or --pv"]),
        ("quantize MODEL -o new --attention paro --density 0.3", ["fitted to prompts"]),
        ("quantize MODEL -o new --attention pro --density 0.3 --prompts two.txt", ["'pro'", "paro"]),
        ("quantize MODEL -o new --density 0.3 --prompts two.txt", ["--attention paro"]),
        ("quantize MODEL -o new --attention paro --density 0 --prompts two.txt", ["density 0.0", "above 0"]),
        ("quantize MODEL -o new --attention paro --density nan --prompts two.txt", ["density nan"]),
        ("quantize MODEL -o new --attention paro --qk 5 --prompts two.txt", ["qk_bits 5", "4, 8"]),
        ("quantize MODEL -o new --attention paro --density 0.001 --prompts two.txt", ["smallest density"]),
        ("quantize MODEL -o new --recipe auto --bits 4 --attention paro --qk 8 --prompts two.txt", ["auto"]),
        ("quantize MODEL -o new --attention paro --qk 8 --prompts two.txt --max-memory 8GiB", ["--max-memory out"]),
        ("inspect MODEL --attention", ["--prompts"]),
        ("inspect QUANTIZED --attention --prompts two.txt", ["quantized already"]),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_writes_nothing(place, model, quantized, command, parts):
    refuse(place, model, quantized, command, *parts)


def test_a_class_without_a_processor_is_named_before_anything_is_loaded(place, quantized, video):
    index = video / "transformer" / "config.json"
    before = index.read_text()
    try:
        index.write_text(before.replace("CogVideoXTransformer3DModel", "LatteTransformer3DModel"))
        refuse(place, video, quantized, "quantize MODEL -o new --attention paro --qk 8 --prompts two.txt", "Latte")
    finally:
        index.write_text(before)


def test_the_page_of_an_attention(video, prompts, tmp_path):
    said = succeed("inspect", video, "--attention", "--prompts", prompts, *SIZE, "-o", tmp_path / "page")
    page = (tmp_path / "page" / "report.html").read_text()
    assert "transformer_blocks.0.attn1" in page and page.count("data:image/png") >= 2
    assert "order" in said and "kept mass" in page and "incoherence" in page
    data = json.loads((tmp_path / "page" / "attention.json").read_text())
    heads = data["heads"]
    assert len(heads) == 4 and all(0 < h["mass"]["0.3"] <= h["mass"]["0.5"] <= 1 for h in heads)
    assert all(
        h["incoherence"]["after"] >= 1 and h["order"] in ("FHW", "FWH", "HFW", "HWF", "WFH", "WHF") for h in heads
    )
    assert set(contents(tmp_path / "page")) == {"report.html", "attention.json"}
