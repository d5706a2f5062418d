"""``vadtune submit FILE``: run a search on a cluster, as a Ray job."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from vadtune.cli._shared import add_job_address, add_overrides

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "submit",
        parents=parents,
        help="run a search on a cluster, as a Ray job",
        description="Send a search file to a Ray cluster, whose head runs the search as a job. Prints the job's id.",
        epilog="example: vadtune submit search_spaces/digits.yaml --storage /shared/runs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a search file")
    add_overrides(parser)
    add_job_address(parser)
    parser.add_argument("--storage", required=True, help="folder of the searches that all nodes share, or a URI")
    parser.add_argument("--tracking-uri", help="MLflow store (default: the head's MLFLOW_TRACKING_URI)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Submits and prints the job's id."""
    from vadtune.config import load_search
    from vadtune.core.errors import ConfigError

    search = load_search(args.file, args.overrides)
    from vadtune.tracking import without_secrets

    if args.tracking_uri and without_secrets(args.tracking_uri) != args.tracking_uri:
        raise ConfigError(
            f"--tracking-uri: must hold no secret, as a job's command is shown to all who see the cluster, got "
            f"{without_secrets(args.tracking_uri)}; set MLFLOW_TRACKING_URI on the nodes instead"
        )
    from vadtune.search.cluster.jobs import Jobs

    job = Jobs(args.address).submit(search, storage=args.storage, tracking_uri=args.tracking_uri)
    print(job)
    logger.info("next: vadtune logs %s --follow --address %s", job, args.address)
    return 0
