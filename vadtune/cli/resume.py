"""``vadtune resume RUN``: complete a search after a crash or Ctrl-C."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from vadtune.cli.search import add_store_arguments, report

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "resume",
        parents=parents,
        help="complete a search after a crash or Ctrl-C",
        description="Complete a search that was interrupted or killed: finished trials are kept, others go on. Without "
        "RUN, list those that can be resumed.",
        epilog="example: vadtune resume digits-20260131-120000-1a2b",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("search_run", nargs="?", metavar="RUN", help="the unique name of the search, or its folder")
    add_store_arguments(parser, default_store="the one the search was started with")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Resumes the search and prints its best trials; without a name, prints those that can be resumed."""
    from vadtune.artifacts.run_folder import find_run, local_folder

    storage = local_folder(args.storage)
    if args.search_run is None:
        return _offer(storage)
    folder = find_run(args.search_run, storage)
    from vadtune.search.driver.run import resume_search

    outcome = resume_search(folder, tracking_uri=args.tracking_uri, address=args.address)
    if outcome is None:
        logger.info("%s is complete, nothing to resume", folder.name)
        return 0
    return report(outcome, args)


def _offer(storage: Path) -> int:
    from vadtune.artifacts.run_folder import is_running, run_folders
    from vadtune.tracking import is_finished

    unfinished = [folder.name for folder in run_folders(storage) if not is_finished(folder) and not is_running(folder)]
    for name in unfinished:
        print(name)
    logger.info("to resume: %d searches in %s%s", len(unfinished), storage, "" if unfinished else ", nothing to do")
    if unfinished:
        logger.info("next: vadtune resume %s", unfinished[-1])
    return 0
