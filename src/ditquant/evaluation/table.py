"""The table of a comparison: columns are data, so that a report and a terminal show the same."""

import math
from dataclasses import dataclass, field
from typing import Any

from ditquant.evaluation.metrics import METRICS
from ditquant.evaluation.results import ModelResult, Results, statistic_of

MISSING = "–"


@dataclass(frozen=True)
class Column:
    """`key` finds the value in a row, `format` is a format specification for numbers.

    Half of a 95 % interval is shown where the row has one, as `key` with "_margin".
    """

    key: str
    label: str
    format: str = ""

    def text(self, row: dict[str, Any]) -> str:
        """Return a row's cell as it is shown; a dash where there is no value."""
        value = row.get(self.key)
        if value is None:
            return MISSING
        if isinstance(value, float) and math.isinf(value):
            return "∞" if value > 0 else "-∞"
        if isinstance(value, str):
            return value
        margin = row.get(f"{self.key}_margin", math.nan)
        return format(value, self.format) + (f" ±{format(margin, self.format)}" if math.isfinite(margin) else "")

    @property
    def numeric(self) -> bool:
        """True if its cells stand to the right."""
        return self.format != ""


@dataclass
class Table:
    """Rows of values and the columns that show them."""

    columns: list[Column] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def cells(self) -> list[list[str]]:
        """Return all cells as they are shown, row by row."""
        return [[column.text(row) for column in self.columns] for row in self.rows]


def results_table(results: Results) -> Table:
    """Return one row a model; a column without a single value is left out."""
    columns = [
        Column("name", "model"),
        Column("recipe", "recipe"),
        Column("bits_per_weight", "bits a weight, all-in", ".2f"),
        Column("file_mb", "file size MB", ".2f"),
        Column("step_sqnr_db", "step SQNR dB", ".2f"),
        Column("latent_sqnr_db", "median final-latent SQNR dB", ".2f"),
        *(Column(name, metric.label, metric.format) for name, metric in METRICS.items()),
        Column("caption_accuracy", "caption accuracy", ".1%"),
        Column("seconds", "seconds", ".1f"),
    ]
    rows = [_row(model) for model in results.models]
    return Table([c for c in columns if any(row.get(c.key) is not None for row in rows)], rows)


def _row(model: ModelResult) -> dict[str, Any]:
    summary = model.summary()
    shown = {name: found[statistic_of(name)] for name, found in summary.items()}
    margins = {f"{name}_margin": (found["high"] - found["low"]) / 2 for name, found in summary.items()}
    facts = model.facts
    return {
        "name": model.name,
        "recipe": facts.recipe,
        "bits_per_weight": facts.bits_per_weight,
        "file_mb": None if facts.file_bytes is None else facts.file_bytes / 1e6,
        "seconds": model.seconds,
        **shown,
        **margins,
    }
