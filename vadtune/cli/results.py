"""``vadtune results EXPERIMENT``: every trial of a search."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from vadtune.cli._shared import FORMATS, add_search_arguments, console, emit, find

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "results",
        parents=parents,
        help="list every trial of a search",
        description="List every trial of a search, best first. The table holds the score and the parameters that vary; "
        "CSV and JSON hold every metric and parameter.",
        epilog="example: vadtune results digits --format csv --out digits.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_search_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of --out, else table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to this file instead of the screen")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints or writes the trials."""
    from vadtune.core.files import check_writable
    from vadtune.reports.tables import to_text
    from vadtune.tracking.queries import ENSEMBLE_TAG
    from vadtune.tracking.rows import main_columns, trial_rows

    out: Path | None = args.out
    ending = out.suffix.removeprefix(".") if out else ""
    if out is not None:
        check_writable(out.absolute().parent)
    search, trials, metric = find(args)
    rows = trial_rows(trials, metric)
    kind = args.format or (ending if ending in FORMATS else "table")
    emit(rows, kind, lambda console: to_text(main_columns(rows, metric), console), out)
    if ENSEMBLE_TAG in search.tags:
        logger.info("its ensemble, last exported: %s", search.tags[ENSEMBLE_TAG])
    if out is not None:
        logger.info("wrote %d trials of %s to %s", len(rows), search.name, out)
    return 0


def print_best(name: str, tracking_uri: str, *, top: int = 5) -> None:
    """Prints the best trials of a search as a table.

    Args:
        name: Of the experiment or of the run.
        tracking_uri: The MLflow store.
        top: How many trials.
    """
    from vadtune.reports.tables import to_text
    from vadtune.tracking.queries import find_results
    from vadtune.tracking.rows import main_columns, trial_rows

    _, trials, metric = find_results(name, tracking_uri)
    best = [row for row in trial_rows(trials, metric) if row["rank"] is not None][:top]
    print(to_text(main_columns(best, metric), console()), end="")
