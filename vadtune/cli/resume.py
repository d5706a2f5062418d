"""Complete a search after a crash or Ctrl-C.

Finished trials are kept, unfinished ones continue from their last checkpoint. Without RUN, lists the searches that can
be resumed.

example: vadtune resume
example: vadtune resume digits-20260131-120000-1a2b
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vadtune.cli.arguments import add_storage
from vadtune.cli.output import logger
from vadtune.cli.search import report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("search_run", nargs="?", metavar="RUN", help="unique name of the search, or its folder")
    add_storage(parser, default_store="that of the search")


def run(args: argparse.Namespace) -> int:
    """Resumes the search and prints its best trials; without a name, lists the searches that can be resumed."""
    from vadtune.artifacts.run_folder import find_run, local_folder

    storage = local_folder(args.storage)
    if args.search_run is None:
        return _list_unfinished(storage)
    folder = find_run(args.search_run, storage)
    from vadtune.search.driver.run import resume_search

    outcome = resume_search(folder, tracking_uri=args.tracking_uri, address=args.address)
    if outcome is None:
        logger.info("%s is complete, nothing to resume", folder.name)
        return 0
    return report(outcome, args)


def _list_unfinished(storage: Path) -> int:
    from vadtune.artifacts.run_folder import is_running, run_folders
    from vadtune.tracking import is_finished

    unfinished = [folder.name for folder in run_folders(storage) if not is_finished(folder) and not is_running(folder)]
    for name in unfinished:
        print(name)
    logger.info("to resume: %d searches in %s%s", len(unfinished), storage, "" if unfinished else ", nothing to do")
    if unfinished:
        logger.info("next: vadtune resume %s", unfinished[-1])
    return 0
