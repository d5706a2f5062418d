"""What several commands have in common."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from vadtune.reports.tables import Rows
    from vadtune.tracking.queries import SearchResults

FORMATS = ("table", "csv", "json")


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which search is meant."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name of the search; its latest run is taken")
    parser.add_argument(
        "--run", dest="search_run", metavar="RUN", help="a certain run of it, such as digits-20250102-..."
    )
    add_tracking_argument(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds values that replace those of the file before them."""
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the file's")


def add_tracking_argument(parser: argparse.ArgumentParser) -> None:
    """Adds which MLflow store is meant."""
    parser.add_argument("--tracking-uri", help="MLflow store (default: MLFLOW_TRACKING_URI, else ./mlflow.db)")


def add_ensemble_argument(parser: argparse.ArgumentParser) -> None:
    """Adds how models of a search are put together."""
    parser.add_argument(
        "--ensemble",
        default="greedy",
        metavar="HOW",
        help="greedy: members and weights chosen on held-out cells (default); top:K: the best K alike; best: the best",
    )


def check_device(device: str) -> None:
    """Makes sure that a device is there.

    Raises:
        ConfigError: It is not.
    """
    import torch

    from vadtune.core.errors import ConfigError

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device: {device} is not to be had here ({str(error).splitlines()[0]})") from error


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Adds where downloaded data sets lie."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where MNIST and Fashion-MNIST lie or are downloaded to; short for data.data_dir=DIR "
        "(default: ~/.cache/vadtune)",
    )


def with_data_dir(args: argparse.Namespace) -> list[str]:
    """Returns the overrides, with that of ``--data-dir`` where it is given."""
    return [*args.overrides, *([f"data.data_dir={json.dumps(str(args.data_dir))}"] if args.data_dir else [])]


def add_job_address(parser: argparse.ArgumentParser) -> None:
    """Adds which cluster's job server is meant."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    parser.add_argument(
        "--address",
        default=address,
        help="job server of the cluster (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)",
    )


def find(args: argparse.Namespace) -> SearchResults:
    """Returns the search that the arguments name."""
    from vadtune.core.errors import TrackingError
    from vadtune.tracking import tracking_uri
    from vadtune.tracking.queries import find_results

    found = find_results(args.search_run or args.experiment, tracking_uri(args.tracking_uri))
    if args.experiment not in (found.search.experiment, found.search.name):
        raise TrackingError(
            f"--run: takes a run of {args.experiment}, got {found.search.name} of {found.search.experiment}; "
            "name the experiment it belongs to"
        )
    return found


def console(*, to_file: bool = False) -> Console:
    """Returns where tables go: as wide as the terminal, of any width where there is none."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal and not to_file else Console(width=10_000, force_terminal=False)


def emit(rows: Rows, kind: str, table: Callable[[Console], str], out: Path | None = None) -> None:
    """Prints rows as CSV, JSON or a table, or writes them to a file."""
    from vadtune.core.files import write_atomically
    from vadtune.reports.tables import to_csv, to_json

    match kind:
        case "csv":
            text = to_csv(rows)
        case "json":
            text = to_json(rows)
        case _:
            text = table(console(to_file=out is not None))
    if out is None:
        print(text, end="")
    else:
        write_atomically(out, text.encode())
