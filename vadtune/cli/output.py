"""Prints tables, results and progress; data goes to stdout, log lines to stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vadtune.core.text import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

    from vadtune.reports.tables import Rows

logger = logging.getLogger("vadtune.cli")
_LINES = "\n\t"


class PrintableFormatter(logging.Formatter):
    """Formats log records without the control characters of names and messages that come from files and stores."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return printable(super().format(record), keep=_LINES)


def say(text: object, *, end: str = "\n") -> None:
    """Prints a text to stdout without control characters, except ends of lines; the only way that commands print."""
    print(printable(str(text), keep=_LINES), end=end, flush=True)


def say_error(message: str) -> None:
    """Prints an error to stderr on one line."""
    print(f"vadtune: error: {one_line(message)}", file=sys.stderr)


def table_console(*, to_file: bool = False) -> Console:
    """Returns a console as wide as the terminal, or of unlimited width if stdout is not a terminal."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal and not to_file else Console(width=10_000, force_terminal=False)


def print_table(rows: Rows) -> None:
    """Prints rows as a table."""
    from vadtune.reports.tables import to_text

    print(to_text(rows, table_console()), end="")


def emit(rows: Rows, kind: str, table: Callable[[Console], str] | None = None, out: Path | None = None) -> None:
    """Prints rows, or writes them to a file.

    Args:
        rows: The rows of CSV and JSON.
        kind: csv, json or table.
        table: Makes the table's text; without it, the table shows ``rows``.
        out: Write to this file instead of stdout.
    """
    from vadtune.core.files import write_atomically
    from vadtune.reports.tables import to_csv, to_json, to_text

    if kind == "csv":
        text = to_csv(rows)
    elif kind == "json":
        text = to_json(rows)
    else:
        console = table_console(to_file=out is not None)
        text = table(console) if table else to_text(rows, console)
    if out is None and kind == "table":
        print(text, end="")  # its cells are printable, its headings may be bold
    elif out is None:
        say(text, end="")
    else:
        write_atomically(out, text.encode())


@contextmanager
def progress_line(first: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that shows progress: on one changing line of a terminal, otherwise as log lines."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield logger.info
        return
    from rich.text import Text

    with console.status(Text(printable(first))) as status:
        yield lambda line: status.update(Text(printable(line)))


def print_failures(failures: dict[str, str]) -> int:
    """Logs the trials or searches that failed, by name and reason; returns the exit code."""
    for name, reason in failures.items():
        logger.error("%s failed: %s", name, reason)
    return 1 if failures else 0
