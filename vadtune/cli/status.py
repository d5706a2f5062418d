"""``vadtune status``: the searches that were submitted to a cluster."""

from __future__ import annotations

import argparse
from typing import Any

from vadtune.cli._shared import FORMATS, add_job_address, emit


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "status",
        parents=parents,
        help="list the searches submitted to a cluster",
        description="List the jobs of a Ray cluster, newest first, with their state.",
        epilog="example: vadtune status --address http://127.0.0.1:8265",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", nargs="?", metavar="JOB", help="only this one")
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed (default: table)")
    add_job_address(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a row for each job."""
    from vadtune.reports.tables import to_text
    from vadtune.search.cluster.jobs import Jobs

    rows = Jobs(args.address).status(args.job)
    emit(rows, args.format, lambda console: to_text(rows, console))
    return 0
