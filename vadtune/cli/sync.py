"""``vadtune sync RUN``: deliver to MLflow what a search could not."""

from __future__ import annotations

import argparse
import logging
from typing import Any

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "sync",
        parents=parents,
        help="deliver to MLflow what a search could not",
        description="Deliver to MLflow what a search logged while the store was away. What it has is not sent again.",
        epilog="example: vadtune sync digits-20260131-120000-1a2b",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("search_run", metavar="RUN", help="the unique name of the search, or its folder")
    parser.add_argument("--storage", default="runs", help="folder of the searches (default: runs)")
    parser.add_argument("--tracking-uri", help="MLflow store (default: the one the search was started with)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Delivers, and says how much."""
    from vadtune.artifacts.run_folder import find_run, local_folder, read_run, run_lock

    folder = find_run(args.search_run, local_folder(args.storage))
    described = read_run(folder)
    from vadtune.tracking import store_of, sync

    with run_lock(folder):
        uri = store_of(described.tracking_uri, args.tracking_uri)
        ids = {"experiment_id": described.experiment_id, "run_id": described.parent_run_id}
        done = sync(folder, uri, search=described.run, **ids)
    logger.info("%s: %s", described.run, f"{done} bytes delivered" if done else "the store has everything")
    return 0
