"""A tiny pipeline on disk, and a quantized copy of it, built once."""

import pytest
import torch

from tests.cli.command import succeed
from tests.tiny import PROMPTS, tiny_pixart_pipeline


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a pipeline whose transformer is stored in bfloat16, but for one tensor."""
    folder = tmp_path_factory.mktemp("models") / "tiny model é"
    pipeline = tiny_pixart_pipeline()
    for name, parameter in pipeline.transformer.named_parameters():
        if name != "transformer_blocks.0.scale_shift_table":
            parameter.data = parameter.data.bfloat16()
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """A file of two prompts, with a mark at its beginning, an empty line and Windows ends of lines."""
    file = tmp_path_factory.mktemp("prompts") / "two.txt"
    file.write_bytes(b"\xef\xbb\xbf" + f"{PROMPTS[0]}\r\n\r\n  {PROMPTS[1]}  \r\n".encode())
    return file


@pytest.fixture(scope="session")
def quantized(model, prompts, tmp_path_factory):
    """The folder of the quantized pipeline."""
    folder = tmp_path_factory.mktemp("quantized") / "tiny-w4a8"
    succeed("quantize", model, "--recipe", "lrq-w4a8", "--prompts", prompts, "-o", folder)
    return folder


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Two threads that wait for each other are slow where other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder with an empty folder, a full one and a file of prompts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "two.txt").write_text("\n".join(PROMPTS[:2]))
    return tmp_path
