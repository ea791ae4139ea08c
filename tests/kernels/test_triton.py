"""The Triton kernels in Triton's interpreter, in a process of its own; and who is told why they are not taken."""

import contextlib
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ditquant.formats import PackedWeight
from ditquant.kernels import triton
from ditquant.kernels.kept import keep
from ditquant.kernels.triton import available
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, WeightSpec

GPU = torch.device("cuda", 0)


def test_the_kernels_in_the_interpreter():
    pytest.importorskip("triton", reason="pip install triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", Path(__file__).parent / "triton_kernels"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout


@pytest.fixture
def a_card(monkeypatch):
    """Pretend that Triton and a card of some capability are there."""

    def pretend(capability: tuple[int, int], version: str = "3.6.0") -> None:
        available._why_no_triton.cache_clear()
        monkeypatch.setattr(available, "_capability", lambda index: capability)
        monkeypatch.setattr(available.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(available, "version", lambda name: version)
        monkeypatch.setattr(available, "INTERPRETED", False)

    yield pretend
    available._why_no_triton.cache_clear()


def test_a_card_is_taken_from_ampere_on(a_card, monkeypatch):
    a_card((9, 0))
    assert triton.why_not(GPU) is None
    assert triton.why_not(torch.device("cpu")) == "there are no Triton kernels for cpu"
    a_card((7, 5))
    assert triton.why_not(GPU) == "the card has compute capability 7.5, the Triton kernels need 8.0"
    a_card((9, 0), "3.1.0")
    assert triton.why_not(GPU) == "triton 3.1.0 is older than 3.2"
    monkeypatch.setenv("DITQUANT_TRITON_KERNELS", "0")
    assert triton.why_not(GPU) == "DITQUANT_TRITON_KERNELS is 0"


def test_without_triton(monkeypatch):
    available._why_no_triton.cache_clear()
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda name: None)
    assert triton.why_not(GPU) == "triton is not installed (pip install triton)"
    available._why_no_triton.cache_clear()


def some_weight(width: int = 96, kind: str = "affine", bits: int = 4, **options) -> PackedWeight:
    weight = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    return QUANTIZERS["rtn" if kind == "affine" else kind](weight, WeightSpec(bits, kind, **options))


@pytest.mark.parametrize(
    ("weight", "activation", "reason"),
    [
        (some_weight(), ActSpec(8), None),
        (some_weight(group_size=48), ActSpec(8, "group", 24), None),
        (some_weight(kind="twin_log"), None, None),
        (some_weight(group_size=12), ActSpec(8), "groups of 16 channels or more, in multiples of 4, not 12"),
        (some_weight(90, group_size=18), ActSpec(8), "not 18"),
        (some_weight(group_size=48), ActSpec(8, "group", 32), None),
        (some_weight(bits=8, symmetric=False), ActSpec(8), "asymmetric 8-bit weights do not fit INT8"),
        (some_weight(bits=8, symmetric=False), None, None),
        (some_weight(kind="twin_log", group_size=48), None, "'twin_log' weights with one group a row"),
        (some_weight(32772), ActSpec(8), "at most 32768 input channels"),
    ],
)
def test_layers_that_are_not_taken_are_told_why(weight, activation, reason, monkeypatch):
    monkeypatch.setattr("ditquant.kernels.triton.linear.why_not", lambda device: None)
    found = triton.why_not_triton(torch.zeros(2, weight.shape[1]), weight, activation)
    assert found is None if reason is None else reason in found


def test_inputs_that_are_not_taken_are_told_why(monkeypatch):
    monkeypatch.setattr("ditquant.kernels.triton.linear.why_not", lambda device: None)
    weight = some_weight()
    assert triton.why_not_triton(torch.zeros(0, 96), weight, ActSpec(8)) == "there are no tokens"
    assert "do not take torch.float64" in triton.why_not_triton(torch.zeros(2, 96).double(), weight, ActSpec(8))


class OnCard(torch.Tensor):
    """A tensor that says it is on a card."""

    is_cuda = True


def test_what_is_kept_is_made_in_another_thread_and_not_while_a_graph_is_captured(monkeypatch):
    """A CUDA graph's memory takes what its thread allocates, and is used again by the next replay."""
    weight, threads, capturing = some_weight(), [], [True]
    weight = replace(weight, codes=weight.codes.as_subclass(OnCard))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))

    def make() -> tuple[torch.Tensor]:
        threads.append(threading.get_ident())
        return (torch.zeros(3),)

    keep(weight, "table", make)
    assert threads == [threading.get_ident()]
    capturing[0] = False
    found = keep(weight, "table", make)
    assert len(threads) == 2 and threads[1] != threading.get_ident()
    capturing[0] = True
    assert keep(weight, "table", make) is found and len(threads) == 2
