"""``vadtune stop JOB``: end a submitted search."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from vadtune.cli._shared import add_job_address

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "stop",
        parents=parents,
        help="end a submitted search; it can be resumed",
        description="Ask a submitted search to save its state and end. `vadtune resume`, on a node, takes it up again.",
        epilog="example: vadtune stop raysubmit_abc --address http://127.0.0.1:8265",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", metavar="JOB", help="its id, as `vadtune submit` printed it")
    add_job_address(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stops the job."""
    from vadtune.search.cluster.jobs import Jobs

    ran = Jobs(args.address).stop(args.job)
    logger.info("%s %s", args.job, "is told to stop" if ran else "had ended already")
    return 0
