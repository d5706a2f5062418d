"""``vadtune logs JOB``: what a submitted search has printed."""

from __future__ import annotations

import argparse
from typing import Any

from vadtune.cli._shared import add_job_address


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "logs",
        parents=parents,
        help="show what a submitted search has printed",
        description="Show what a submitted search has printed so far.",
        epilog="example: vadtune logs raysubmit_abc --follow --address http://127.0.0.1:8265",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", metavar="JOB", help="its id, as `vadtune submit` printed it")
    parser.add_argument("--follow", action="store_true", help="go on until the search ends")
    add_job_address(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the job's output."""
    from vadtune.search.cluster.jobs import Jobs

    for text in Jobs(args.address).logs(args.job, follow=args.follow):
        print(text, end="", flush=True)
    return 0
