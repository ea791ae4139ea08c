"""Every kernel compiles to machine code of cards that are not there, with their matrix units and registers to spare."""

import pytest
import torch

pytest.importorskip("triton", reason="pip install triton")

from ditquant.kernels.triton import attend_triton, linear_triton
from ditquant.kernels.triton.ops import triton_quantize, triton_rotate
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, WeightSpec
from tests.kernels.triton_machine_code import can_compile, compile_call

pytestmark = pytest.mark.skipif(not can_compile(), reason="this Triton compiles for no card that is not there")

WIDTH, ROWS = 1152, 32
CARDS = (80, 89, 90, 100)
SHARED = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448}  # bytes of shared memory that a program may have
SIGNS = torch.zeros(WIDTH // 8, dtype=torch.uint8)
FACTOR = torch.ones(WIDTH, dtype=torch.bfloat16).view(torch.int16)
ORDER = torch.arange(WIDTH, dtype=torch.int16)


def some_linear(tokens: int, bits: int, kind: str, activation: ActSpec | None, **options):
    weight = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    packed = QUANTIZERS["rtn" if kind == "affine" else kind](weight, WeightSpec(bits, kind, **options))
    x = torch.zeros(tokens, WIDTH, dtype=torch.bfloat16)
    return lambda: linear_triton(x, packed, activation, torch.zeros(ROWS, dtype=torch.bfloat16))


def some_attention(width: int, qk_bits: int | None, pv_bits: int | None):
    q = torch.zeros(1, 2, 200, width, dtype=torch.bfloat16)
    index, keep = torch.arange(200).expand(2, 200).contiguous(), torch.ones(2, 4, 4, dtype=torch.bool)
    return lambda: attend_triton(q, q, q, index, keep, qk_bits, pv_bits)


def some_codes(order: torch.Tensor | None, symmetric: bool):
    x = torch.zeros(4608, WIDTH, dtype=torch.bfloat16)
    second = None if order is None else SIGNS
    return lambda: triton_quantize(x, FACTOR, 128, SIGNS, order, second, 8, symmetric, 1.0, WIDTH, WIDTH)


FLOATS = torch.zeros(100, WIDTH)
GROUPED = ActSpec(8, "group", 128, symmetric=False)
USUAL = {
    "rotate and quantize": some_codes(None, True),
    "W3A8": some_linear(300, 3, "twin_log", ActSpec(8)),
    "W4A8, few tokens": some_linear(20, 4, "twin_log", ActSpec(8)),
    "groups": some_linear(300, 4, "affine", GROUPED, group_size=128, symmetric=False),
    "attention": some_attention(64, 8, 8),
}
OTHER = {
    "rotate twice": some_codes(ORDER, False),
    "rotate float32": lambda: triton_rotate(FLOATS, None, 64, SIGNS, None, None),
    "W4A8 with zero points": some_linear(300, 4, "affine", ActSpec(8, symmetric=False), symmetric=False),
    "W6A6": some_linear(300, 6, "affine", ActSpec(6)),
    "W4A16, few tokens": some_linear(3, 4, "twin_log", None),
    "W3A16": some_linear(300, 3, "affine", None, group_size=64),
    "attention of 72": some_attention(72, 8, None),
    "attention of 128": some_attention(128, None, None),
}


@pytest.fixture(autouse=True)
def compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("DITQUANT_TUNE", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # the default, which Triton 3.9 wants to be said


def check(calls: dict, cards: tuple[int, ...], monkeypatch) -> None:
    for name, call in calls.items():
        for kernel in compile_call(call, cards, monkeypatch):
            where = f"{name}: {kernel.name} for {kernel.capability}"
            assert kernel.spilled <= 256, where
            assert kernel.shared <= SHARED[kernel.capability], where
            if kernel.name.startswith(("_multiply", "_few_codes")) or (name, kernel.name) == ("attention", "_attend"):
                products = [line for line in kernel.ptx.splitlines() if "mma" in line]
                assert any(".s8" in line or "kind::i8" in line for line in products), where


def test_the_usual_kernels_for_hopper(monkeypatch):
    check(USUAL, (90,), monkeypatch)


@pytest.mark.slow
def test_all_kernels_for_all_cards(monkeypatch):
    check(USUAL | OTHER, CARDS, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["multiply", "multiply_groups", "attention"])
def test_every_card_has_a_configuration_and_hopper_all(module, monkeypatch):
    from ditquant.kernels.triton import attention, multiply, multiply_groups

    modules = {"multiply": multiply, "multiply_groups": multiply_groups, "attention": attention}
    calls = {"multiply": USUAL["W3A8"], "multiply_groups": USUAL["groups"], "attention": USUAL["attention"]}

    def every(key, configs, run):
        for config in configs[1:]:
            run(config)
        return configs[0]

    monkeypatch.setattr(modules[module], "choose", every)
    found = compile_call(calls[module], CARDS, monkeypatch)
    found = [kernel for kernel in found if kernel.name in ("_multiply", "_multiply_groups", "_attend")]
    assert {kernel.capability for kernel in found if kernel.shared <= SHARED[kernel.capability]} == set(CARDS)
    assert all(kernel.shared <= SHARED[90] and kernel.spilled <= 256 for kernel in found if kernel.capability == 90)
