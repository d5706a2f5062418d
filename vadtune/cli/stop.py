"""Stop a submitted search; it can be resumed.

Asks the search to save its state and end. `vadtune resume` on a node of the cluster continues it.

example: vadtune stop raysubmit_abc --address http://127.0.0.1:8265
"""

from __future__ import annotations

import argparse

from vadtune.cli.arguments import add_job_address
from vadtune.cli.output import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("job", metavar="JOB", help="job id, as `vadtune submit` printed it")
    add_job_address(parser)


def run(args: argparse.Namespace) -> int:
    """Stops the job."""
    from vadtune.search.cluster.jobs import Jobs

    was_running = Jobs(args.address).stop(args.job)
    logger.info("%s %s", args.job, "was asked to stop" if was_running else "had ended already")
    return 0
