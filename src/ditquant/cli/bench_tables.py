"""The tables of `ditquant bench`."""

from typing import Any

from ditquant.cli.show import console, printed

COLUMNS = {
    "ms": ("ms", "{:.1f}"),
    "ratio": ("times as fast", "{:.2f}"),
    "held_mb": ("MB held", "{:.1f}"),
    "bytes_ratio": ("of full precision", "{:.2f}"),
    "peak_mb": ("MB at the peak", "{:.1f}"),
    "file_mb": ("MB on disk", "{:.1f}"),
    "sqnr_db": ("output SQNR dB", "{:.1f}"),
}
LOADING = {
    "load_s": ("loading s", "{:.2f}"),
    "first_output_s": ("to the first output s", "{:.2f}"),
    "peak_mb": ("MB at the peak", "{:.1f}"),
}


def show_found(found: dict[str, Any]) -> None:
    """Print what was measured, on what, and what was left out and why."""
    out = console()
    subject = ", ".join(f"{key} {value}" for key, value in found["subject"].items() if value is not None)
    out.print(f"{subject}; {found.get('gpu', found['cpu'])}, {found['threads']} threads, {found['rounds']} rounds")
    rows = found["model"]
    show_rows("", COLUMNS, rows)
    parts = {name: row["parts"] for name, row in rows.items() if "parts" in row}
    if parts:
        names = {part: (part, "{:.1f}") for row in parts.values() for part in row}
        show_rows("ms of a call by operator", names, parts)
    loading = {name: row["loading"] for name, row in rows.items() if "loading" in row}
    if loading:
        show_rows("in a new process", LOADING, loading)
    for name, reason in found["left_out"].items():
        out.print(f"left out: {name}: {reason}")


def show_rows(title: str, columns: dict[str, tuple[str, str]], rows: dict[str, dict[str, Any]]) -> None:
    """Print one line for every name; what is missing is a dash."""
    labels = [label for label, _ in columns.values()]
    table = printed("model", *labels, right=tuple(labels), title=title or None)
    for name, row in rows.items():
        table.add_row(name, *(cell(row.get(key), form) for key, (_, form) in columns.items()))
    console().print(table)


def cell(value: Any, form: str) -> str:
    """Show a number, a word that stands for one, or a dash."""
    return "–" if value is None else value if isinstance(value, str) else form.format(value)
