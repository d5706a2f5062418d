"""Search for the best configuration with Ray Tune, ASHA and Optuna.

FILE says which data, which parameters and how long; every trial is logged to MLflow. Prints the best trials.

example: vadtune search digits
example: vadtune search my_search.yaml search.samples=20 data.missing.ratio=0.3
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vadtune.cli.arguments import add_data_dir, add_search_file, add_storage, read_search
from vadtune.cli.output import logger, print_failures, print_table

if TYPE_CHECKING:
    from vadtune.search.driver.run import SearchOutcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_search_file(parser)
    add_data_dir(parser)
    add_storage(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the search and prints its best trials."""
    search = read_search(args)  # before the slow imports, so that mistakes are reported at once
    from vadtune.search.driver.start import start_search

    outcome = start_search(search, storage=args.storage, tracking_uri=args.tracking_uri, address=args.address)
    return report(outcome, args)


def report(outcome: SearchOutcome, args: argparse.Namespace) -> int:
    """Prints the best trials of a search and the next commands; returns the exit code."""
    from vadtune.tracking import without_secrets

    store = f" --tracking-uri {without_secrets(args.tracking_uri)}" if args.tracking_uri else ""
    if outcome.interrupted:
        storage = f" --storage {args.storage}" if args.storage != "runs" else ""
        address = f" --address {args.address}" if args.address else ""
        logger.info("resume it: vadtune resume %s%s%s%s", outcome.run, storage, store, address)
        return 130
    if not outcome.logged:
        best = f"best {outcome.best[0]:.4f} ({outcome.best[1]})" if outcome.best else "no trial has a score"
        logger.info("%s; send the rest to the store later: vadtune sync %s%s", best, outcome.run, store)
        return print_failures(outcome.failures)
    _print_best(outcome.run, outcome.tracking_uri)
    logger.info("all trials: vadtune results %s%s", outcome.experiment, store)
    logger.info("next: vadtune export %s --out best%s && vadtune retest best", outcome.experiment, store)
    logger.info("browse: vadtune ui%s", store)
    return print_failures(outcome.failures)


def _print_best(run: str, tracking_uri: str) -> None:
    from vadtune.tracking.queries import find_results
    from vadtune.tracking.rows import main_columns, trial_rows

    _, trials, metric = find_results(run, tracking_uri)
    best = [row for row in trial_rows(trials, metric) if row["rank"] is not None][:5]
    print_table(main_columns(best, metric))
