"""Tables on the terminal; in a file or a pipe they are wide enough that nothing is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table as Printed

if TYPE_CHECKING:
    from ditquant.evaluation import Table

WIDE = 160


def console() -> Console:
    """Return where tables are printed; what it is given is text, not markup."""
    plain = Console(markup=False, highlight=False, emoji=False)
    return plain if plain.is_terminal else Console(markup=False, highlight=False, emoji=False, width=WIDE)


def printed(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Printed:
    """Return an empty table; the columns in `right` hold numbers."""
    table = Printed(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def show(table: Table) -> None:
    """Print a table of results."""
    labels = [column.label for column in table.columns]
    result = printed(*labels, right=tuple(column.label for column in table.columns if column.numeric))
    for row in table.cells():
        result.add_row(*row)
    console().print(result)
