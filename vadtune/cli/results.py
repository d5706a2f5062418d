"""List every trial of a search, best first.

The table has the score and the parameters that vary; CSV and JSON have every metric and parameter.

example: vadtune results digits
example: vadtune results digits --out digits.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vadtune.cli.arguments import FORMATS, add_search, find_search
from vadtune.cli.output import emit, logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_search(parser)
    parser.add_argument("--format", choices=FORMATS, help="output format (default: the ending of --out, else table)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to this file (default: print)")


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
    search, trials, metric = find_search(args)
    rows = trial_rows(trials, metric)
    kind = args.format or (ending if ending in FORMATS else "table")
    emit(rows, kind, lambda console: to_text(main_columns(rows, metric), console), out)
    if ENSEMBLE_TAG in search.tags:
        logger.info("its ensemble, last exported: %s", search.tags[ENSEMBLE_TAG])
    if out is not None:
        logger.info("wrote %d trials of %s to %s", len(rows), search.name, out)
    return 0
