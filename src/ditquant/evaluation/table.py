"""The table of a comparison: columns are data, so that a report and a terminal show the same."""

import math
from dataclasses import dataclass, field
from typing import Any

from ditquant.evaluation.metrics import METRICS
from ditquant.evaluation.pairs import differences, figure
from ditquant.evaluation.results import ModelResult, Results

MISSING = "–"


@dataclass(frozen=True)
class Column:
    """`key` finds the value in a row, `format` is a format specification for numbers.

    A 95 % interval is shown where the row has one, as `key` with "_interval", a pair of numbers that may be NaN:
    by half its width, or by its `ends`, where the value need not be its middle. `better` is "higher" or "lower".
    """

    key: str
    label: str
    format: str = ""
    better: str = "higher"
    ends: bool = False

    def text(self, row: dict[str, Any]) -> str:
        """Return a row's cell as it is shown; a dash where there is no value."""
        value = row.get(self.key)
        if value is None:
            return MISSING
        if isinstance(value, float) and math.isinf(value):
            return "∞" if value > 0 else "-∞"
        if isinstance(value, str):
            return value
        return format(value, self.format) + self._spread(row.get(f"{self.key}_interval"))

    def _spread(self, found: tuple[float, float] | None) -> str:
        if found is None:
            return ""
        if not all(map(math.isfinite, found)):
            return f" ±{MISSING}"
        low, high = found
        if self.ends:
            return f" ({format(low, self.format)} to {format(high, self.format)})"
        return f" ±{format((high - low) / 2, self.format)}"

    @property
    def numeric(self) -> bool:
        """True if its cells stand to the right."""
        return self.format != ""


@dataclass
class Table:
    """Rows of values and the columns that show them."""

    columns: list[Column] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    title: str = ""

    def cells(self) -> list[list[str]]:
        """Return all cells as they are shown, row by row."""
        return [[column.text(row) for column in self.columns] for row in self.rows]

    def page_data(self) -> dict[str, Any]:
        """Return every cell's text, and the value that it is sorted by."""
        rows = [[{"text": c.text(row), "value": plain(row.get(c.key))} for c in self.columns] for row in self.rows]
        return {"kind": "table", "title": self.title, "columns": self.columns, "rows": rows}


def plain(value: Any) -> str:
    """Return a value as a script reads it: nothing for None, infinity in full."""
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return "" if value is None else str(value)


def measures() -> list[Column]:
    """Return the figures that every prompt can have."""
    return [
        Column("lpips", "LPIPS", ".4f", "lower"),
        *(Column(name, metric.label, metric.format, metric.better) for name, metric in METRICS.items()),
        Column("clip_score", "CLIPScore", ".2f"),
        Column("latent_sqnr_db", "final-latent SQNR dB", ".2f"),
        Column("step_sqnr_db", "step SQNR dB", ".2f"),
        Column("caption_accuracy", "caption accuracy", ".1%", ends=True),
    ]


SETS = (
    Column("fid", "FID to the reference", ".2f", "lower"),
    Column("fid_real", "FID to real pictures", ".2f", "lower"),
    Column("kid", "KID to the reference", ".5f", "lower"),
    Column("kid_real", "KID to real pictures", ".5f", "lower"),
)
NAMES = (Column("name", "model"), Column("recipe", "recipe"))
SIZES = (Column("bits_per_weight", "bits a weight, all-in", ".2f"), Column("file_mb", "file size MB", ".2f"))
SECONDS = Column("seconds", "seconds", ".1f")


def results_table(results: Results) -> Table:
    """Return one row a model; a column without a single value is left out."""
    return _table(results, [*NAMES, *SIZES, *_quality(), SECONDS], "Results")


def quality_table(results: Results) -> Table:
    """Return how near every model is to full precision."""
    return _table(results, [*NAMES, *_quality()], "Quality")


def differences_table(results: Results) -> Table:
    """Return how far models are above the reference and the first other model; without rows if nothing is common."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for found in differences(results.models):
        row = rows.setdefault((found.model, found.other), {"name": found.model, "other": found.other})
        known = not math.isnan(found.value)
        row |= {found.metric: found.value, f"{found.metric}_interval": (found.low, found.high)} if known else {}
    columns = [
        Column(c.key, c.label, c.format and f"+{c.format}", c.better, ends=True)
        for c in (NAMES[0], Column("other", "minus"), *_quality())
    ]
    shown = [c for c in columns if any(row.get(c.key) is not None for row in rows.values())]
    return Table(shown, [*rows.values()], "Differences, prompt by prompt")


def cost_table(results: Results) -> Table:
    """Return what every model takes, also beside the reference."""
    beside = [Column("size_share", "of the reference's", ".0%"), SECONDS]
    beside += [Column("prompt_seconds", "seconds a prompt", ".2f"), Column("speed", "times as fast", ".2f")]
    return _table(results, [*NAMES, *SIZES, *beside], "Size and speed")


def _quality() -> list[Column]:
    columns = {column.key: column for column in measures()}
    first = ("step_sqnr_db", "latent_sqnr_db")
    median = Column("latent_sqnr_db", "median final-latent SQNR dB", ".2f")
    return [columns[first[0]], median, *(column for key, column in columns.items() if key not in first), *SETS]


def _table(results: Results, columns: list[Column], title: str) -> Table:
    rows = [_row(model, results) for model in results.models]
    return Table([c for c in columns if any(row.get(c.key) is not None for row in rows)], rows, title)


def _row(model: ModelResult, results: Results) -> dict[str, Any]:
    summary = model.summary()
    shown = {name: figure(name, values) for name, values in model.values.items()}
    spreads = {f"{name}_interval": (found["low"], found["high"]) for name, found in summary.items()}
    facts, reference = model.facts, results.models[0]
    sizes = (facts.file_bytes, reference.facts.file_bytes)
    return {
        "name": model.name,
        "recipe": facts.recipe,
        "bits_per_weight": facts.bits_per_weight,
        "file_mb": None if facts.file_bytes is None else facts.file_bytes / 1e6,
        "size_share": sizes[0] / sizes[1] if sizes[0] and sizes[1] else None,
        "seconds": model.seconds,
        "prompt_seconds": model.seconds / max(len(results.prompts), 1),
        "speed": reference.seconds / model.seconds if model.seconds else None,
        **shown,
        **spreads,
        **model.scores,
    }
