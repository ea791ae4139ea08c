"""A model is compared with the reference on the same prompts and seeds, one model in memory at a time."""

import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from ditquant.engine import quantize
from ditquant.errors import DitQuantError
from ditquant.evaluation import ModelFacts, Results, Sampling, compare, generate, shapes, write_comparison
from ditquant.evaluation.comparison_folder import folder_names
from ditquant.evaluation.conditions import conditions_of
from ditquant.evaluation.metrics import METRICS, sqnr_db
from tests.evaluation.video import tiny_video_pipeline
from tests.tiny import PROMPTS, tiny_pixart_pipeline

# diffusers' solver turns tensors into arrays in a way that newer numpy versions announce the end of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SAMPLING = Sampling(steps=2)


def noisy_pipeline():
    pipeline = tiny_pixart_pipeline()
    with torch.no_grad():
        pipeline.transformer.proj_out.weight.mul_(1.3)
    return pipeline


@pytest.fixture(scope="module")
def results():
    describe = {"full": ModelFacts(), "same": ModelFacts(), "org/noisy": ModelFacts("r", "h", 3.0, 10)}
    return compare(
        tiny_pixart_pipeline(),
        {"org/noisy": noisy_pipeline, "same": tiny_pixart_pipeline},
        PROMPTS[:3],
        [4, 9, 2],
        sampling=SAMPLING,
        reference_name="full",
        describe=lambda name, pipeline: describe[name],
        progress=False,
    )


def test_an_equal_model_is_perfect_and_another_is_not(results):
    full, noisy, same = results.models
    assert full.values == {}
    assert same.steps == [np.inf] * 2
    assert same.values == {
        "step_sqnr_db": [np.inf] * 3,
        "latent_sqnr_db": [np.inf] * 3,
        "psnr_db": [np.inf] * 3,
        "ssim": [1.0] * 3,
    }
    assert max(noisy.values["ssim"]) < 1 and max(noisy.values["latent_sqnr_db"]) < 60


def test_values_are_those_of_separate_runs(results):
    options = {"seeds": [4, 9, 2], "steps": 2, "batch_size": 4, "progress": False}
    truth, made = (generate(p, PROMPTS[:3], **options) for p in (tiny_pixart_pipeline(), noisy_pipeline()))
    values = results.models[1].values
    assert values["latent_sqnr_db"] == sqnr_db(truth.latents, made.latents).tolist()
    assert values["psnr_db"] == METRICS["psnr_db"](truth.images, made.images).tolist()
    assert results.models[1].facts == ModelFacts("r", "h", 3.0, 10)
    assert results.seeds == [4, 9, 2] and results.sampling["steps"] == 2


def test_a_folder_with_results_report_and_pictures(results, tmp_path):
    write_comparison(results, tmp_path / "out", title="Demo", facts={"note": "x"})
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    pictures = [f"pictures/{m}/{i:04d}.png" for m in ("full", "org-noisy", "same") for i in range(3)]
    assert found == [*pictures, "report.html", "results.json"]
    stored = np.asarray(Image.open(tmp_path / "out" / "pictures" / "org-noisy" / "0001.png"))
    assert np.array_equal(stored, results.models[1].images[1])
    assert [m.values for m in Results.load(tmp_path / "out" / "results.json").models] == [
        m.values for m in results.models
    ]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["models"][1]["name"] == "org/noisy"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3, seeds 4, 9, 2" in page and "Demo" in page and "org/noisy" in page
    assert "SQNR of the prediction at the states" in page
    with pytest.raises(DitQuantError, match="--overwrite"):
        write_comparison(results, tmp_path / "out")
    write_comparison(results, tmp_path / "out", overwrite=True)


def test_folder_names_are_harmless_and_different():
    assert folder_names(["a/b", "a-b", "..", "../..", "A-B", "x y:z"]) == [
        "a-b",
        "a-b-2",
        "model",
        "model-2",
        "A-B-3",
        "x-y-z",
    ]


def test_one_loaded_model_at_a_time():
    alive = weakref.WeakSet()

    def load():
        assert len(alive) == 0, "the model before is still in memory"
        pipeline = tiny_pixart_pipeline()
        alive.add(pipeline.transformer)
        return pipeline

    compare(load, {"a": load, "b": load}, PROMPTS[:1], sampling=SAMPLING, progress=False)


def test_what_it_ran_on_is_kept_and_can_be_refused(results):
    assert (results.conditions.dtype, results.conditions.device) == ("float32", "cpu")
    again = [conditions_of(pipeline) for pipeline in (tiny_pixart_pipeline(), noisy_pipeline())]
    assert results.conditions == again[0] and again[0].reference_digest != again[1].reference_digest
    assert conditions_of(tiny_pixart_pipeline().to(torch.bfloat16)).dtype == "bfloat16"

    def refuse(conditions):
        assert conditions == again[0]
        raise DitQuantError("not that")

    def never():
        raise AssertionError("loaded")

    with pytest.raises(DitQuantError, match=r"^not that"):
        compare(tiny_pixart_pipeline(), {"a": never}, PROMPTS[:1], check=refuse, progress=False)


def test_errors_name_the_model():
    with pytest.raises(DitQuantError, match="two models have the name 'x'"):
        compare(tiny_pixart_pipeline, {"x": tiny_pixart_pipeline}, PROMPTS[:1], reference_name="x")

    def broken():
        pipeline = tiny_pixart_pipeline()
        pipeline.transformer.proj_out.bias.data.fill_(torch.nan)
        return pipeline

    with pytest.raises(DitQuantError, match=r"^bad: the final latents of prompt"):
        compare(tiny_pixart_pipeline(), {"bad": broken}, PROMPTS[:1], sampling=SAMPLING, progress=False)


class Painter:
    """Paints scenes as a pipeline does; `wrong` prompts get the picture of another scene."""

    def __init__(self, wrong: tuple[int, ...] = ()):
        self.vae, self.wrong, self.count = torch.nn.Identity(), wrong, 0
        self.vae.decode = lambda z: z
        self._progress_bar_config = {}

    def set_progress_bar_config(self, **options):
        self._progress_bar_config = options

    def __call__(self, prompt, generator, output_type):
        self.vae.decode(torch.stack([torch.randn(4, generator=g) for g in generator]))
        pictures = []
        for text in prompt:
            scene = shapes.parse(text)
            if self.count in self.wrong:
                scene = shapes.Scene(scene.ground, scene.items[1:]) if len(scene.items) > 1 else shapes.parse(OTHER)
            pictures.append(shapes.draw(scene) / 255.0)
            self.count += 1
        return (np.stack(pictures),)


OTHER = "a small red cross at the top on a white ground"


def test_caption_accuracy_of_scenes_only():
    prompts = shapes.prompts(4)
    results = compare(Painter(), {"half": Painter(wrong=(1, 3))}, prompts, step_prompts=0, progress=False)
    assert results.models[0].values == {"caption_accuracy": [1.0] * 4}
    assert results.models[1].values["caption_accuracy"] == [1.0, 0.0, 1.0, 0.0]
    assert results.models[1].summary()["caption_accuracy"]["mean"] == 0.5
    small = compare(tiny_pixart_pipeline(), {}, prompts[:1], sampling=SAMPLING, progress=False)
    assert small.models[0].values == {}, "32 pixels are no picture of a scene"


def test_videos_with_a_quantized_model(tmp_path):
    def quantized():
        pipeline = tiny_video_pipeline()
        quantize(pipeline, "rtn-w4a8")
        return pipeline

    sampling = Sampling(steps=2, height=16, width=16, frames=9)
    results = compare(tiny_video_pipeline, {"w4": quantized}, PROMPTS[:2], sampling=sampling, progress=False)
    full, w4 = results.models
    assert set(full.values) == {"flicker", "warp_error"} < set(w4.values)
    assert len(w4.steps) == 2 and w4.layers and all(0 < layer.sqnr_db < 80 for layer in w4.layers)
    write_comparison(results, tmp_path / "out")
    assert len(list((tmp_path / "out" / "pictures" / "w4" / "0001").iterdir())) == 9
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img ") == 2 * 2 * 8 and page.count('class="frame"') == 2
