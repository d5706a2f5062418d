"""List the searches in an MLflow store with their state.

One row per search, newest first: state, trials by how they ended, best score. Searches in the state killed, interrupted
or failed can be resumed.

example: vadtune list
example: vadtune list digits --format csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vadtune.cli.arguments import add_format, add_tracking_uri
from vadtune.cli.output import emit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="only this name (default: all searches)")
    add_format(parser)
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a row for each search."""
    from vadtune.tracking import tracking_uri
    from vadtune.tracking.rows import search_rows

    emit(search_rows(tracking_uri(args.tracking_uri), args.experiment, running=_runs_here), args.format)
    return 0


def _runs_here(folder: str) -> bool | None:
    """Returns whether a process of this machine works on a search; None if its folder is not on this machine."""
    from vadtune.artifacts.run_folder import is_running

    return is_running(Path(folder)) if folder and Path(folder).is_dir() else None
