"""Format tables for people, as plain text without colours."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def text(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    unbroken: int = 0,
    right: Sequence[str] = (),
    width: int | None = None,
    usual_width: int = 100,
) -> str:
    """Return a table, ending in a newline, without spaces at the ends of lines.

    The first ``unbroken`` columns are never wrapped; columns named in ``right`` are aligned
    to the right.  Without ``width`` (in characters) the terminal's is taken, or
    ``usual_width`` if there is none.  No head is shown if all are empty.
    """
    table = Table(
        title=title,
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
        show_header=any(heads),
    )
    for number, head in enumerate(heads):
        table.add_column(
            head,
            no_wrap=number < unbroken,
            overflow="fold",
            justify="right" if head in right else "left",
        )
    for row in rows:
        table.add_row(*row)
    written = io.StringIO()
    columns = width or shutil.get_terminal_size((usual_width, 24)).columns
    Console(file=written, width=columns, highlight=False, markup=False, emoji=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in written.getvalue().splitlines())
