"""Run a search on a cluster as a Ray job.

Sends the search file to a Ray cluster, whose head node runs the search. Prints the job id.

example: vadtune submit digits --storage /shared/runs
example: vadtune submit my_search.yaml search.samples=200 --storage s3://bucket/runs --address http://127.0.0.1:8265
"""

from __future__ import annotations

import argparse

from vadtune.cli.arguments import add_job_address, add_search_file, add_tracking_uri, read_search
from vadtune.cli.output import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_search_file(parser)
    add_job_address(parser)
    parser.add_argument("--storage", required=True, help="folder that all nodes share, or a URI (required)")
    add_tracking_uri(parser, "MLFLOW_TRACKING_URI of the head node")


def run(args: argparse.Namespace) -> int:
    """Submits the job and prints its id."""
    from vadtune.core.errors import ConfigError

    search = read_search(args)
    from vadtune.tracking import without_secrets

    if args.tracking_uri and without_secrets(args.tracking_uri) != args.tracking_uri:
        raise ConfigError(
            f"--tracking-uri: must hold no secret, as a job's command is shown to all users of the cluster, got "
            f"{without_secrets(args.tracking_uri)}; set MLFLOW_TRACKING_URI on the nodes instead"
        )
    from vadtune.search.cluster.jobs import Jobs

    job = Jobs(args.address).submit(search, storage=args.storage, tracking_uri=args.tracking_uri)
    print(job)
    logger.info("next: vadtune logs %s --follow --address %s", job, args.address)
    return 0
