"""`ditquant bench`: what it prints and writes, and what it refuses in one line."""

import json

import pytest

from tests.cli.command import ditquant, refuse, refused


def test_a_pipeline(model, tmp_path):
    file = tmp_path / "bench.json"
    run = ditquant("bench", model, "--recipes", "rtn-w4a8", "--modes", "memory", "--rounds", "1", "-o", file)
    assert run.code == 0, run.err
    found = json.loads(file.read_text())
    assert set(found["model"]) >= {"bfloat16", "rtn-w4a8, memory"}
    assert found["subject"] == {"model": str(model), "batch": 1}
    assert {"torch", "ditquant", "python"} <= set(found["versions"])
    assert set(found["model"]["rtn-w4a8, memory"]["parts"]) >= {"decode", "product", "attention", "rest"}
    for part in ("times as fast", "MB at the peak", "rtn-w4a8, memory", "ms of a call by operator"):
        assert part in run.out
    refused(ditquant("bench", model, "-o", file), "exists")


def test_a_quantized_pipeline(quantized):
    run = ditquant("bench", quantized, "--modes", "speed", "--rounds", "1", "--no-parts")
    assert run.code == 0, run.err
    assert "as stored, speed" in run.out and "by operator" not in run.out


@pytest.mark.parametrize(
    "command, part",
    [
        ("bench", "give either MODEL or --shape"),
        ("bench MODEL --shape pixart-xl", "give either MODEL or --shape"),
        ("bench --shape flux", "Did you mean 'flux-dev'?"),
        ("bench --shape pixart-xl --tokens 0", "tokens 0 are not allowed"),
        ("bench --shape pixart-xl --blocks 29", "Choose an integer from 1 to 28"),
        ("bench --shape pixart-xl --batch 0", "batch"),
        ("bench --shape pixart-xl --rounds 0", "rounds"),
        ("bench --shape pixart-xl --dtype int8", "unknown dtype 'int8'"),
        ("bench --shape pixart-xl --recipes lrq-w4a9", "Did you mean 'lrq-w4a8'"),
        ("bench --shape pixart-xl --recipes ,", "names no recipe"),
        ("bench --shape pixart-xl --modes fast", "unknown mode 'fast'"),
        ("bench --shape pixart-xl --device mars", "device 'mars' cannot be used"),
        ("bench --shape pixart-xl --sdnq-python nowhere", "is no Python that can be run"),
        ("bench --shape pixart-xl -o full", "full is a folder"),
        ("bench MODEL --tokens 64", "--blocks and --tokens are for --shape"),
        ("bench MODEL/transformer", "single PixArtTransformer2DModel"),
        ("bench nowhere", "unknown model"),
    ],
)
def test_what_is_refused(place, model, quantized, command, part):
    refuse(place, model, quantized, command, part)
