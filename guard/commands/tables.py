"""Tables on the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text


def new_table(title: str, *columns: str) -> Table:
    """A table whose cells are folded where they are long."""
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a row; a cell that is None is "-", and no cell is markup."""
    table.add_row(*(Text("-" if cell is None else str(cell)) for cell in cells))
