"""``vadtune search FILE``: run a search."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadtune.cli._shared import add_data_argument, add_overrides, with_data_dir

if TYPE_CHECKING:
    from vadtune.search.driver.run import SearchOutcome

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "search",
        parents=parents,
        help="find the best configuration",
        description="Search for the best configuration with Ray Tune, ASHA and Optuna; log every trial to MLflow.",
        epilog="example: vadtune search search_spaces/digits.yaml search.samples=20 data.missing.ratio=0.3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a search file")
    add_overrides(parser)
    add_data_argument(parser)
    add_store_arguments(parser)
    parser.set_defaults(run=run)


def add_store_arguments(
    parser: argparse.ArgumentParser, default_store: str = "MLFLOW_TRACKING_URI, else ./mlflow.db"
) -> None:
    """Adds where searches are kept and logged."""
    parser.add_argument("--storage", default="runs", help="folder of the searches, or a URI (default: runs)")
    parser.add_argument("--tracking-uri", help=f"MLflow store (default: {default_store})")
    parser.add_argument(
        "--address", help="of a running Ray cluster this machine is a node of: auto or host:port (default: none)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the search and prints its best trials."""
    from vadtune.config import load_search

    search = load_search(args.file, with_data_dir(args))  # before the slow imports: bad input is told at once
    from vadtune.search.driver.start import start_search

    outcome = start_search(search, storage=args.storage, tracking_uri=args.tracking_uri, address=args.address)
    return report(outcome, args)


def report(outcome: SearchOutcome, args: argparse.Namespace) -> int:
    """Prints how a search ended and what to type next; returns the exit code."""
    from vadtune.cli.results import print_best
    from vadtune.tracking import without_secrets

    store = f" --tracking-uri {without_secrets(args.tracking_uri)}" if args.tracking_uri else ""
    if outcome.interrupted:
        storage = f" --storage {args.storage}" if args.storage != "runs" else ""
        address = f" --address {args.address}" if args.address else ""
        logger.info("resume it: vadtune resume %s%s%s%s", outcome.run, storage, store, address)
        return 130
    if not outcome.logged:
        best = f"best {outcome.best[0]:.4f} ({outcome.best[1]})" if outcome.best else "no trial has a score"
        logger.info("%s; more once the store has it: vadtune sync %s%s", best, outcome.run, store)
        return _failed(outcome)
    print_best(outcome.run, outcome.tracking_uri)
    logger.info("all trials: vadtune results %s%s", outcome.experiment, store)
    logger.info("next: vadtune export %s --out best%s && vadtune retest best", outcome.experiment, store)
    logger.info("browse: vadtune ui%s", store)
    return _failed(outcome)


def _failed(outcome: SearchOutcome) -> int:
    for name, reason in outcome.failures.items():
        logger.error("%s failed: %s", name, reason)
    return 1 if outcome.failures else 0
