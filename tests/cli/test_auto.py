"""What `quantize --recipe auto` prints of the front, and a budget in which there is nothing to do."""

import pytest

from ditquant import auto
from ditquant.auto import Way
from ditquant.cli.choose import Budget, spend
from ditquant.errors import DitQuantError
from ditquant.rule import Rule
from ditquant.specs import WeightSpec

RULE = Rule("x", WeightSpec(4, "twin_log"))
WAYS = {"a": [Way(None, 16, 0.0, 9.0), Way(RULE, 4, 5.0, 2.5)], "b": [Way(None, 16, 0.0, 8.0), Way(RULE, 4, 5.0, 4.0)]}


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    def choose(pipeline, bits, latency_ms, **_):
        return auto.spend(WAYS, 16, bits, latency_ms)

    monkeypatch.setattr("ditquant.auto.choose", choose)


def test_the_front_has_milliseconds_where_they_are_the_budget(capsys):
    assert spend(None, Budget(None, 11), ["x"], 0, {}).name == "auto-11ms"
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["6.50", "4.00", "+0.0"] in rows and ["17.00", "16.00", "-inf"] in rows
    assert ["10.50", "10.00", "-3.0", "<-"] in rows
    spend(None, Budget(10, None), ["x"], 0, {})
    out = capsys.readouterr().out
    assert ["10.00", "-3.0", "<-"] in [line.split() for line in out.splitlines()] and "ms a call" not in out


@pytest.mark.parametrize(("budget", "words"), [(Budget(None, 17), "--latency 17"), (Budget(16), "--bits 16")])
def test_a_budget_in_which_nothing_needs_to_be_quantized_is_refused(budget, words):
    with pytest.raises(DitQuantError, match=rf"within {words} every layer can stay in floating point.*Choose less\."):
        spend(None, budget, ["x"], 0, {})
