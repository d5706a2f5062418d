"""``vadtune list``: the searches of a store and how they stand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vadtune.cli._shared import FORMATS, add_tracking_argument, emit


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "list",
        parents=parents,
        help="list experiments and searches with their state",
        description="List the searches an MLflow store holds, newest first: state, trials by how they ended, best "
        "score. A search that neither finished nor runs can be resumed.",
        epilog="example: vadtune list --format csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="only the searches of that name")
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed (default: table)")
    add_tracking_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a row for each search."""
    from vadtune.reports.tables import to_text
    from vadtune.tracking import tracking_uri
    from vadtune.tracking.rows import search_rows

    rows = search_rows(tracking_uri(args.tracking_uri), args.experiment, running=_runs_here)
    emit(rows, args.format, lambda console: to_text(rows, console))
    return 0


def _runs_here(folder: str) -> bool | None:
    """Whether a process of this machine works on a search; None where its folder is not to be seen from here."""
    from vadtune.artifacts.run_folder import is_running

    return is_running(Path(folder)) if folder and Path(folder).is_dir() else None
