"""The README shows what was measured: its tables are those of the committed results."""

import json

import pytest

from benchmarks import readme


def test_the_tables_are_the_committed_results():
    text = (readme.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.filled(text) == text, "run python benchmarks/readme.py"


def test_the_demos_rows_are_all_there():
    rows = json.loads((readme.RESULTS / "demo.json").read_text(encoding="utf-8"))["rows"]
    assert [row["model"] for row in rows] == ["pixart-shapes", "lrq-w4a8", "lrq-w4a4", "lrq-w3a8", "rtn-w3a8"]
    assert all(set(readme.COLUMNS) <= set(row) for row in rows)


def test_a_table():
    rows = [{"model": "plain", "MB": None}, {"model": "small", "MB": 4.94, "MB ±": 0.25}]
    assert readme.table(rows, {"model": "{}", "MB": "{:.1f}"}).splitlines() == [
        "| model | MB |",
        "|---|---|",
        "| plain | – |",
        "| `small` | 4.9 ± 0.2 |",
    ]


def test_a_place_that_is_missing():
    with pytest.raises(ValueError, match="no place for 'speed'"):
        readme.fill("<!-- demo -->\n<!-- /demo -->\n", "speed", "x")
