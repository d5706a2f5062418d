"""Show the output of a submitted search.

example: vadtune logs raysubmit_abc --follow --address http://127.0.0.1:8265
"""

from __future__ import annotations

import argparse

from vadtune.cli.arguments import add_job_address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("job", metavar="JOB", help="job id, as `vadtune submit` printed it")
    parser.add_argument("--follow", action="store_true", help="continue until the search ends (default: off)")
    add_job_address(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the job's output."""
    from vadtune.search.cluster.jobs import Jobs

    for text in Jobs(args.address).logs(args.job, follow=args.follow):
        print(text, end="", flush=True)
    return 0
