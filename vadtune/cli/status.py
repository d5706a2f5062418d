"""List the searches submitted to a cluster.

One row per job of the Ray cluster, newest first, with its state.

example: vadtune status --address http://127.0.0.1:8265
"""

from __future__ import annotations

import argparse

from vadtune.cli.arguments import add_format, add_job_address
from vadtune.cli.output import emit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("job", nargs="?", metavar="JOB", help="only this job (default: all jobs)")
    add_format(parser)
    add_job_address(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a row for each job."""
    from vadtune.search.cluster.jobs import Jobs

    emit(Jobs(args.address).status(args.job), args.format)
    return 0
