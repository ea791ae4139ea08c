"""The rows that `accuracy.py` measured, found by table, name and bits; and how a table is written."""

from collections.abc import Iterable
from statistics import mean
from typing import Any

from accuracy_rows import BITS, METHODS


class Found:
    """Values by table, name and bits, all seeds together."""

    def __init__(self, rows: Iterable[dict[str, Any]]):
        self._rows = sorted(rows, key=lambda row: row["seed"])

    def rows(self, table: str, name: str, bits: str) -> list[dict[str, Any]]:
        return [r for r in self._rows if (r["table"], r["name"], r["bits_asked"]) == (table, name, bits)]

    def values(self, table: str, name: str, bits: str, figure: str = "step_sqnr_db") -> list[float]:
        return [value for row in self.rows(table, name, bits) for value in row[figure]]

    def bits(self) -> list[str]:
        """Widths that any method was measured at."""
        return [bits for bits in BITS if any(self.rows("methods", m, bits) for m in METHODS)]

    def db(self, method: str, bits: str) -> float:
        """Mean of a method; NaN if it was not measured."""
        values = self.values("methods", method, bits)
        return mean(values) if values else float("nan")

    def seeds(self, method: str, bits: str) -> set[int]:
        """Seeds that a method was measured with."""
        return {row["seed"] for row in self.rows("methods", method, bits)}

    def paired(self, method: str, bits: str, other: str, their_bits: str) -> tuple[list[float], list[float]]:
        """Values of two methods, of the seeds that both were measured with."""
        common = self.seeds(method, bits) & self.seeds(other, their_bits)
        both = (self.rows("methods", method, bits), self.rows("methods", other, their_bits))
        mine, theirs = ([v for row in rows if row["seed"] in common for v in row["step_sqnr_db"]] for rows in both)
        return mine, theirs

    def size(self, table: str, name: str, bits: str) -> float:
        return mean(row["bits"] for row in self.rows(table, name, bits))


def table(head: list[str], lines: list[list[str]]) -> str:
    """Write a table of a page."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
