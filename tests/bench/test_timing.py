"""Contestants take turns, and a ratio is that of one round."""

import subprocess
import sys

import pytest
import torch

from ditquant.bench import interleave, median_ms, ratio
from ditquant.bench.memory import CLEAR
from ditquant.bench.timing import Seconds, sqnr_db

MIB = 1 << 20


def test_calls_take_turns_and_the_first_round_does_not_count():
    now, order = [0.0], []

    def call(name: str, lasts: list[float]) -> None:
        order.append(name)
        now[0] += lasts.pop(0)

    a, b = [100.0, 1.0, 2.0], [100.0, 4.0, 4.0]
    seconds = interleave({"a": lambda: call("a", a), "b": lambda: call("b", b)}, 2, lambda: now[0])
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [1.0, 2.0], "b": [4.0, 4.0]}
    assert ratio(seconds, "a", "b") == 3.0
    assert median_ms(seconds["a"]) == 1500.0


def test_a_call_that_times_itself_is_believed():
    assert interleave({"a": lambda: Seconds(7.5)}, 2) == {"a": [7.5, 7.5]}


def test_an_error_that_is_not_finite_is_never_good():
    exact = torch.ones(4)
    assert sqnr_db(exact, exact + 0.1) == pytest.approx(20, abs=1e-4)
    assert not sqnr_db(exact, torch.tensor([1, 1, 1, float("nan")])) > 0


@pytest.mark.skipif(not CLEAR.exists(), reason="peaks can be measured on Linux only")
def test_the_peak_of_a_call_is_what_it_takes_above_what_is_held():
    code = (
        "import torch; from ditquant.bench.memory import growth\n"
        "held = torch.ones(1 << 24)\n"
        "print(growth(lambda: torch.ones(1 << 23).sum()), growth(lambda: held.sum()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    large, small = map(int, run.stdout.split())
    assert 30 * MIB < large < 40 * MIB
    assert small < 8 * MIB
