"""A whole pipeline, saved and loaded by a fresh process that knows nothing but `import ditquant`."""

import os
import subprocess
import sys

import numpy as np
import pytest
from diffusers import DiffusionPipeline

import ditquant
from tests.integrations.built import MIXED, equal_states
from tests.tiny import PROMPTS, paint, tiny_pixart_pipeline

PAINT = """
from pathlib import Path
import numpy as np
{imports}
from tests.tiny import paint
folder = Path({folder!r})
pipeline = DiffusionPipeline.from_pretrained(folder / "pipeline")
pipeline.set_progress_bar_config(disable=True)
np.save(folder / "found.npy", paint(pipeline))
"""
FIRST = """
import ditquant
from diffusers import DiffusionPipeline
"""
LATE = """
from diffusers import DiffusionPipeline
try:
    DiffusionPipeline.from_pretrained(Path({folder!r}) / "pipeline")
except ValueError as error:
    assert "Unknown quantization type, got ditquant" in str(error)
else:
    raise AssertionError("it loads without ditquant")
import ditquant
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    pipeline = tiny_pixart_pipeline()
    ditquant.quantize(pipeline, MIXED, prompts=PROMPTS[:2])
    pipeline.save_pretrained(folder / "pipeline", max_shard_size="50KB")
    np.save(folder / "truth.npy", paint(pipeline))
    return folder


@pytest.mark.parametrize("imports", [FIRST, LATE], ids=["first", "late"])
def test_a_fresh_process_paints_the_same(folder, imports):
    """Imported before diffusers or after; without it the message is diffusers' own."""
    code = PAINT.format(imports=imports, folder=str(folder)).format(folder=str(folder))
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(folder / "found.npy"), np.load(folder / "truth.npy"))


def test_saved_again_it_is_the_same(folder, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(folder / "pipeline")
    pipeline.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert equal_states(pipeline.transformer, again.transformer)
