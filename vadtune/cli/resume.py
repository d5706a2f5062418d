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
        description="Complete a search that was interrupted or killed: finished trials are kept, others go on.",
        epilog="example: vadtune resume digits-20260131-120000-1a2b",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("search_run", metavar="RUN", help="the unique name of the search, or its folder")
    add_store_arguments(parser, default_store="the one the search was started with")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Resumes the search and prints its best trials."""
    from vadtune.errors import SearchError, unknown_name

    folder = args.storage / args.search_run
    if not folder.is_dir():
        folder = Path(args.search_run)
    if not folder.is_dir():
        known = [path.name for path in args.storage.iterdir() if path.is_dir()] if args.storage.is_dir() else []
        raise SearchError(f"{unknown_name('search', args.search_run, known)} (in {args.storage})")
    from vadtune.search.run import resume_search

    outcome = resume_search(folder.absolute(), tracking_uri=args.tracking_uri)
    if outcome is None:
        logger.info("%s is complete, nothing to resume", folder.name)
        return 0
    return report(outcome, args)
