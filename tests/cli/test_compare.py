"""`ditquant compare`: numbers, pictures and one page; a model against itself is perfect."""

import json

import numpy as np
from PIL import Image

from ditquant.evaluation.networks import Networks
from ditquant.evaluation.networks.found import pictures
from tests.cli.command import contents, ditquant, succeed


def compare(tmp_path, *models, prompts, name="report", **options):
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    out = succeed("compare", *models, "--prompts", prompts, "-o", tmp_path / name, "--steps", 2, *words)
    return out, json.loads((tmp_path / name / "results.json").read_text())


def test_numbers_pictures_and_a_page(model, quantized, prompts, tmp_path):
    out, results = compare(tmp_path, model, quantized, prompts=prompts, seed=7)
    reference, other = results["models"]
    assert results["seeds"] == [7, 8] and results["sampling"]["steps"] == 2
    assert reference["recipe"] is None and other["recipe"] == "lrq-w4a8"
    assert other["bits_per_weight"] < reference["bits_per_weight"] == 16
    weights = quantized / "transformer" / "diffusion_pytorch_model.safetensors"
    assert other["file_bytes"] == weights.stat().st_size
    assert all(0 < value < 100 for value in other["values"]["latent_sqnr_db"])
    files = contents(tmp_path / "report")
    assert {"results.json", "report.html"} <= files.keys()
    assert sum(name.endswith(".png") for name in files) == 4
    assert "lrq-w4a8" in out and f"report in {tmp_path / 'report' / 'report.html'}" in out
    page = files["report.html"].decode()
    assert "lrq-w4a8" in page and "http://" not in page and "https://" not in page
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_pictures_are_those_that_generate_makes(model, quantized, prompts, tmp_path):
    compare(tmp_path, model, quantized, prompts=prompts, seed=7)
    succeed("generate", quantized, "--prompts", prompts, "--seed", 7, "--steps", 2, "-o", tmp_path / "many")
    compared = sorted(p for p in (tmp_path / "report" / "pictures").rglob("0001.png") if "w4a8" in str(p.parent))
    a, b = (np.asarray(Image.open(p)) for p in (*compared, tmp_path / "many" / "0001.png"))
    assert np.array_equal(a, b)


def test_several_models_and_a_perfect_one(model, quantized, prompts, tmp_path):
    copy = tmp_path / "copy"
    copy.symlink_to(model)
    out, results = compare(tmp_path, model, copy, quantized, prompts=prompts, **{"batch-size": 1})
    _, perfect, lossy = results["models"]
    assert {(one["model"], one["other"]) for one in results["differences"]} == {(str(quantized), str(copy))}
    assert "Differences, prompt by prompt, with 95 % intervals" in out
    assert all(value == "inf" or value > 1000 for value in map(_number, perfect["values"]["psnr_db"]))
    assert all(_number(value) < 100 for value in lossy["values"]["psnr_db"])


def _number(value):
    return float("inf") if value is None else float(value)


def test_thresholds_decide_the_exit_code(model, quantized, prompts, tmp_path):
    words = ["compare", model, quantized, "--prompts", prompts, "--steps", 2, "-o", tmp_path / "report"]
    run = ditquant(*words, "--require", "step_sqnr_db>=500", "--require", "ssim<=1")
    assert run.code == 1 and "no-go, step_sqnr_db" in run.out
    assert "no-go" in (tmp_path / "report" / "report.html").read_text()
    run = ditquant(*words, "--require", "step_sqnr_db>=-500", "--overwrite")
    assert run.code == 0 and run.out.rstrip().endswith(": go")
    run = ditquant(*words, "--require", "psnr>=5", "--overwrite")
    assert run.code == 2 and "psnr_db" in run.err
    for metric, needed in (("fid_real", 1000), ("kid", 50)):
        run = ditquant(*words, "--require", f"{metric}<=5", "--overwrite")
        assert run.code == 2 and f"{metric} needs at least {needed} prompts, got 2" in run.err


def test_the_thresholds_of_a_recipe_decide_too(model, prompts, tmp_path):
    text = "name: mine\nthresholds: [step_sqnr_db>=500, ssim<=1]\nrules:\n  - {target: 'role:*', weight: {bits: 8}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    succeed("quantize", model, "--recipe", tmp_path / "mine.yaml", "-o", tmp_path / "mine")
    words = ["compare", model, tmp_path / "mine", "--prompts", prompts, "--steps", 2, "-o", tmp_path / "report"]
    run = ditquant(*words)
    assert run.code == 1 and "is not >= 500 (of its recipe)" in run.out and "ssim" not in run.out.split("no-go")[1]
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["models"][1]["thresholds"] == ["step_sqnr_db>=500.0", "ssim<=1.0"]
    assert results["verdict"][0] in run.out and "no-go" in (tmp_path / "report" / "report.html").read_text()
    run = ditquant(*words, "--require", "step_sqnr_db>=5", "--overwrite")
    assert run.code == 0 and run.out.rstrip().endswith(": go")
    (tmp_path / "mine.yaml").write_text(text.replace("ssim<=1", "kid<=1"))
    succeed("quantize", model, "--recipe", tmp_path / "mine.yaml", "-o", tmp_path / "mine", "--overwrite")
    run = ditquant(*words, "--overwrite")
    assert run.code == 2 and "kid needs at least 50 prompts, got 2" in run.err


def test_prompts_of_the_calibration_are_warned_about(model, quantized, prompts, tmp_path, caplog):
    _, results = compare(tmp_path, model, quantized, prompts=prompts)
    assert "calibrated with 2 of these 2 prompts" in results["notes"][0]
    assert (
        "flatter" in caplog.text and "calibrated with 2 of these" in (tmp_path / "report" / "report.html").read_text()
    )
    other = tmp_path / "other.txt"
    other.write_text("a house\nA  HOUSE by the sea")
    caplog.clear()
    _, results = compare(tmp_path, model, quantized, prompts=other, name="second")
    assert "flatter" not in caplog.text and not any("calibrated" in note for note in results["notes"])


def test_models_of_an_earlier_report_join(model, quantized, prompts, tmp_path):
    copy = tmp_path / "copy"
    copy.symlink_to(model)
    compare(tmp_path, model, copy, prompts=prompts, name="first")
    _, results = compare(tmp_path, model, quantized, prompts=prompts, add=tmp_path / "first" / "results.json")
    assert [one["name"] for one in results["models"]] == [str(m) for m in (model, quantized, copy)]
    words = ["compare", model, quantized, "--prompts", prompts, "-o", tmp_path / "no", "--steps", 3]
    run = ditquant(*words, "--add", tmp_path / "first" / "results.json")
    assert run.code == 2 and "unequal settings" in run.err and not (tmp_path / "no").exists()
    words[-1] = 2
    run = ditquant(*words, "--add", tmp_path / "first" / "results.json", "--dtype", "bfloat16")
    assert run.code == 2 and "unequal dtypes: bfloat16 and float32" in run.err and not (tmp_path / "no").exists()
    del results["models"][1]
    (tmp_path / "same.json").write_text(json.dumps(results | {"reference_digest": "0011223344556677"}))
    run = ditquant(*words, "--add", tmp_path / "same.json")
    assert run.code == 2 and "different references" in run.err and not (tmp_path / "no").exists()


def test_too_few_real_pictures_are_refused_before_anything_is_painted(model, quantized, prompts, tmp_path, monkeypatch):
    def find(lpips, clip, inception, real):
        return Networks(inception=object(), real=pictures(real))

    monkeypatch.setattr(Networks, "find", staticmethod(find))
    monkeypatch.setattr("ditquant.evaluation.verdict.FID_SAMPLES", 1)
    (tmp_path / "real").mkdir()
    words = ["compare", model, quantized, "--prompts", prompts, "-o", tmp_path / "no", "--real", tmp_path / "real"]
    for count, metric, needed in ((3, "kid_real", 50), (60, "fid_real", 1000)):
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / "real" / f"{i}.png")
        run = ditquant(*words, *(["--require", "fid_real<=9"] if metric == "fid_real" else []))
        assert run.code == 2 and f"{metric} needs at least {needed} real pictures, got {count}" in run.err
        assert "prompts" not in run.err and not (tmp_path / "no").exists()


def test_metrics_without_a_network_are_left_out_with_a_line(model, quantized, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out, results = compare(tmp_path, model, quantized, prompts=prompts)
    for metric, option in (("LPIPS", "--lpips"), ("FID, KID", "--inception"), ("CLIPScore", "--clip")):
        (line,) = (note for note in results["notes"] if note.startswith(f"{metric} left out: "))
        assert option in line and line in out
    words = ["compare", model, quantized, "--prompts", prompts, "-o", tmp_path / "no", "--lpips", tmp_path / "none"]
    run = ditquant(*words)
    assert run.code == 2 and "there is no file" in run.err and not (tmp_path / "no").exists()
