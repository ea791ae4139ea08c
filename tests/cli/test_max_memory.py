"""`ditquant quantize --max-memory`: the bits of the ordinary way, with one block in memory at a time."""

import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file

from ditquant import engine, on_disk, shards
from ditquant.errors import DitQuantError
from ditquant.max_memory import parse_size
from tests.cli.command import ditquant, refused, saved, split, succeed, write_recipe
from tests.tiny import paint, tiny

GIB = 1 << 30


def equal_weights(one, other) -> bool:
    """Compare headers (checksums, plan, config) and data of all safetensors files."""
    one, other = saved(one), saved(other)
    files = [name for name in one if name.endswith(".safetensors")]
    return one.keys() == other.keys() and all(one[name] == other[name] for name in files) and len(files) > 0


def origins(folder) -> list[str]:
    """Return the files that say where the full-precision model lay."""
    return [str(file) for file in folder.rglob("*.json") if "_name_or_path" in file.read_text()]


@pytest.fixture
def most_held(monkeypatch):
    """Follow how many bytes of blocks are in memory, in `now` and at `most`."""
    seen = {"now": 0, "most": 0}
    hold = on_disk._Owner.hold

    def spy(owner):
        first = owner.held == 0
        size = 4 * sum(torch.Size(place.shape).numel() for place in owner.places.values())
        context = hold(owner)

        class Counted:
            def __enter__(self):
                context.__enter__()
                seen["now"] += size * first
                seen["most"] = max(seen["most"], seen["now"])

            def __exit__(self, *error):
                seen["now"] -= size * first
                return context.__exit__(*error)

        return Counted()

    monkeypatch.setattr(on_disk._Owner, "hold", spy)
    return seen


def test_calibrated_bits_are_those_of_the_ordinary_way(model, quantized, prompts, tmp_path, most_held, monkeypatch):
    made = tmp_path / "made"
    succeed("quantize", model, "--recipe", "lrq-w4a8", "--prompts", prompts, "-o", made, "--max-memory", "3GiB")
    assert equal_weights(made, quantized)
    assert sorted(origins(made) + origins(quantized)) == []
    transformer = PixArtTransformer2DModel.from_pretrained(model / "transformer")
    largest = max(4 * sum(p.numel() for p in block.parameters()) for block in transformer.transformer_blocks)
    assert 0 < most_held["most"] <= largest and most_held["now"] == 0
    assert {p.name for p in tmp_path.iterdir()} == {"made"}


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_component_in_shards_loads_and_runs(name, tmp_path, monkeypatch):
    component = tiny(name)
    component.save_pretrained(tmp_path / "full", max_shard_size="20KB")
    succeed("quantize", tmp_path / "full", "--recipe", "rtn-w4a8", "-o", tmp_path / "one")
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
    succeed("quantize", tmp_path / "full", "--recipe", "rtn-w4a8", "-o", tmp_path / "two", "--max-memory", "3 GiB")
    files = sorted((tmp_path / "two").glob("*.safetensors"))
    assert len(files) > 3
    assert all(len(split(file.read_bytes())[1]) <= 4000 or len(load_file(file)) == 1 for file in files)
    whole = load_file(tmp_path / "one" / "diffusion_pytorch_model.safetensors")
    pieces = {key: value for file in files for key, value in load_file(file).items()}
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[key], pieces[key]) for key in whole)
    loaded = type(component).from_pretrained(tmp_path / "two").state_dict()
    assert all(torch.equal(loaded[key], whole[key]) for key in loaded)


@pytest.mark.parametrize("damaged", [None, "layers.safetensors", "carried/*.safetensors"])
def test_a_killed_run_goes_on(damaged, model, quantized, prompts, tmp_path, monkeypatch):
    words = ("quantize", model, "--recipe", "lrq-w4a8", "--prompts", prompts, "-o", tmp_path / "made")
    words += ("--max-memory", "3GiB", "--work-dir", tmp_path / "work")
    fit, made = engine.quantize_layer, []

    def fit_some(linear, layer, *rest):
        if len(made) == 13:
            raise KeyboardInterrupt
        made.append(layer.name)
        return fit(linear, layer, *rest)

    monkeypatch.setattr(engine, "quantize_layer", fit_some)
    assert ditquant(*words).code == 130
    monkeypatch.setattr(engine, "quantize_layer", fit)
    block = tmp_path / "work" / "transformer.transformer_blocks.0"
    assert block.is_dir() and not (tmp_path / "made").exists()
    if damaged:
        file = next(block.glob(damaged))
        file.write_bytes(file.read_bytes()[:1000])
    succeed(*words)
    assert equal_weights(tmp_path / "made", quantized) and not (tmp_path / "work").exists()


def test_the_pipeline_paints(model, tmp_path):
    out = succeed("quantize", model, "--recipe", "rtn-w8a8", "-o", tmp_path / "made", "--max-memory", "3GiB")
    assert "bits a weight all-in" in out
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "made", dtype=torch.float32)
    assert torch.isfinite(torch.as_tensor(paint(pipeline))).all()


MEASURE = """
import sys
from pathlib import Path
from ditquant.cli import main
sys.argv = ["ditquant", *sys.argv[1:]]
try:
    main()
finally:
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def test_the_least_limit_that_it_accepts_is_kept(tmp_path):
    width, layers = 1152, 6
    full = PixArtTransformer2DModel(
        num_layers=layers,
        num_attention_heads=16,
        attention_head_dim=width // 16,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=width,
        sample_size=8,
        caption_channels=64,
        use_additional_conditions=False,
    )
    size = 4 * sum(p.numel() for p in full.parameters())
    full.save_pretrained(tmp_path / "full", max_shard_size="100MB")
    recipe = write_recipe(tmp_path / "mine.yaml", target="role:attn_q,attn_k,attn_v,attn_out")
    words = ("quantize", tmp_path / "full", "--recipe", recipe, "-o", tmp_path / "made")
    refusal = peak_of(*words, "--max-memory", "100MB")
    assert "too small" in refusal.stderr, refusal.stderr
    least = float(refusal.stderr.split("Give at least ")[1].split(" GiB")[0])
    run = peak_of(*words, "--max-memory", f"{least + 0.02:.2f}GiB")
    assert run.returncode == 0, run.stderr
    idle, peak = peak_kib(refusal), peak_kib(run)
    assert peak << 10 <= (least + 0.02) * GIB
    assert (peak - idle) << 10 < size / 3, "the model must be far larger than what is held of it"
    with safe_open(next((tmp_path / "made").glob("*.safetensors")), "pt") as file:
        assert "ditquant" in file.metadata()


def peak_of(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, *map(str, words)], capture_output=True, text=True
    )


def peak_kib(run: subprocess.CompletedProcess) -> int:
    return int(run.stdout.split("VmHWM:")[1].split()[0])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--max-memory", "4"], ["'4' is no size", "GiB"]),
        (["--max-memory", "4 potatoes"], ["'4 potatoes' is no size"]),
        (["--max-memory", "-1GiB"], ["is no size"]),
        (["--max-memory", "1MiB"], ["too small", "Give at least"]),
        (["--max-memory", "4GiB", "--dtype", "bfloat16"], ["--max-memory", "float32"]),
        (["--max-memory", "4GiB", "--recipe", "lrq-plus-w4a8", "--prompts", "PROMPTS"], ["joint", "lrq-gptq-w4a8"]),
    ],
)
def test_what_cannot_be_done_is_refused(model, prompts, tmp_path, options, parts):
    options = [prompts if option == "PROMPTS" else option for option in options]
    refused(ditquant("quantize", model, "-o", tmp_path / "made", *options), *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["transformer_blocks.1.ff.net.2.bias", "scale_shift_table"])
def test_values_that_are_no_numbers_are_found_before_calibration(model, prompts, tmp_path, name):
    pipeline = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.transformer.get_parameter(name).data.view(-1)[3] = float("inf")
    pipeline.save_pretrained(tmp_path / "bad")
    for options in ((), ("--prompts", prompts)):
        words = ("quantize", tmp_path / "bad", "-o", tmp_path / "made", *options)
        run = ditquant(*words, "--max-memory", "3GiB")
        assert run.code == 2 and f"error: '{name}' holds NaN or infinite values" in run.err
        assert "calibrating" not in run.err and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 << 30), ("1.5 gb", 1_500_000_000), ("700 MiB", 700 << 20), (" 2TB ", 2 * 10**12)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "4", "0GiB", "4 G", "nanGiB", "infGB", "1e300TB"])
def test_no_sizes(text):
    with pytest.raises(DitQuantError, match="is no size"):
        parse_size(text)
