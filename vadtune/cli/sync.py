"""Send to MLflow what a search could not.

Use it after a search that ended while the store did not answer. Entries that the store has are not sent again.

example: vadtune sync digits-20260131-120000-1a2b
"""

from __future__ import annotations

import argparse

from vadtune.cli.arguments import add_tracking_uri
from vadtune.cli.output import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("search_run", metavar="RUN", help="unique name of the search, or its folder")
    parser.add_argument("--storage", default="runs", metavar="DIR", help="folder of the searches (default: runs)")
    add_tracking_uri(parser, "that of the search")


def run(args: argparse.Namespace) -> int:
    """Sends the entries, and logs how many bytes."""
    from vadtune.artifacts.run_folder import find_run, local_folder, read_run, run_lock

    folder = find_run(args.search_run, local_folder(args.storage))
    search = read_run(folder)
    from vadtune.tracking import store_of, sync

    with run_lock(folder):
        uri = store_of(search.tracking_uri, args.tracking_uri)
        ids = {"experiment_id": search.experiment_id, "run_id": search.parent_run_id}
        sent = sync(folder, uri, search=search.run, **ids)
    logger.info("%s: %s", search.run, f"{sent} bytes delivered" if sent else "the store has everything")
    return 0
