"""These tests run the Triton kernels: on a GPU (marker `gpu`), or with TRITON_INTERPRET=1 on the CPU.

`tests/kernels/test_triton.py` starts a process for the latter, because Triton reads the variable when it is imported.
"""

import pytest
import torch

from ditquant.kernels.triton.available import INTERPRETED

if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if not INTERPRETED and "triton_kernels" in item.nodeid:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def first_configuration(monkeypatch):
    """Time no configurations: whichever is chosen, the result is the same."""
    monkeypatch.setenv("DITQUANT_TUNE", "0")
