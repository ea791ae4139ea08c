"""A table of results on the terminal."""

from rich.console import Console
from rich.table import Table as Printed

from ditquant.evaluation import Table


def show(table: Table) -> None:
    """Print a table of results."""
    printed = Printed()
    for column in table.columns:
        printed.add_column(column.label, justify="right" if column.numeric else "left")
    for row in table.cells():
        printed.add_row(*row)
    Console().print(printed)
