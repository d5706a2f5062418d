"""Arguments that several commands share, their checks, and what they name."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vadtune.core.errors import ConfigError

if TYPE_CHECKING:
    from vadtune.config import SearchFile
    from vadtune.tracking.queries import SearchResults

FORMATS = ("table", "csv", "json")
_DEFAULT_STORE = "MLFLOW_TRACKING_URI, else ./mlflow.db"


def add_search_file(parser: argparse.ArgumentParser, help: str = "search file, or a name of `vadtune spaces`") -> None:
    """Adds a search file or trial configuration, and overrides of its values."""
    parser.add_argument("file", metavar="FILE", help=help)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace those of FILE")


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of downloaded data sets."""
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder of downloaded images (default: ~/.cache/vadtune)"
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    """Adds the name of a finished or running search, and its store."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name of the search")
    parser.add_argument("--run", dest="search_run", metavar="RUN", help="run of the search (default: the latest)")
    add_tracking_uri(parser)


def add_tracking_uri(parser: argparse.ArgumentParser, default: str = _DEFAULT_STORE) -> None:
    """Adds the URI of the MLflow store."""
    parser.add_argument("--tracking-uri", metavar="URI", help=f"MLflow store (default: {default})")


def add_storage(parser: argparse.ArgumentParser, default_store: str = _DEFAULT_STORE) -> None:
    """Adds the folder of the searches, the MLflow store and the Ray cluster."""
    parser.add_argument("--storage", default="runs", metavar="DIR", help="folder of the searches (default: runs)")
    add_tracking_uri(parser, default_store)
    parser.add_argument("--address", help="running Ray cluster: host:port or auto (default: start Ray locally)")


def add_job_address(parser: argparse.ArgumentParser) -> None:
    """Adds the address of a cluster's job server."""
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
        metavar="URL",
        help="job server of the cluster (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)",
    )


def add_model_folder(parser: argparse.ArgumentParser) -> None:
    """Adds an exported model or ensemble."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported ensemble, or one model folder of it")


def add_ensemble(parser: argparse.ArgumentParser) -> None:
    """Adds how models of a search are combined."""
    parser.add_argument(
        "--ensemble",
        default="greedy",
        help="greedy: choose members and weights on held-out cells; top:K: mean of the best K; best (default: greedy)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds the device to train on."""
    parser.add_argument("--device", default="cpu", help="device to train on: cpu, cuda or cuda:N (default: cpu)")


def add_format(parser: argparse.ArgumentParser) -> None:
    """Adds the format of what is printed."""
    parser.add_argument("--format", choices=FORMATS, default="table", help="output format (default: table)")


def overrides_of(args: argparse.Namespace) -> list[str]:
    """Returns the overrides, including that of ``--data-dir``."""
    data_dir = getattr(args, "data_dir", None)
    return [*args.overrides, *([f"data.data_dir={json.dumps(str(data_dir))}"] if data_dir else [])]


def read_search(args: argparse.Namespace) -> SearchFile:
    """Reads the search file that the arguments name, with their overrides.

    Raises:
        ConfigError: With every problem of the file.
    """
    from vadtune.config import load_search
    from vadtune.core.shipped import find_search_file

    return load_search(find_search_file(args.file), overrides_of(args))


def find_search(args: argparse.Namespace) -> SearchResults:
    """Reads the search that the arguments name from the MLflow store.

    Raises:
        TrackingError: The store has no such search, or ``--run`` is a run of another one.
    """
    from vadtune.core.errors import TrackingError
    from vadtune.tracking import tracking_uri
    from vadtune.tracking.queries import find_results

    found = find_results(args.search_run or args.experiment, tracking_uri(args.tracking_uri))
    if args.experiment not in (found.search.experiment, found.search.name):
        raise TrackingError(
            f"--run: takes a run of {args.experiment}, got {found.search.name} of {found.search.experiment}; "
            "pass the experiment it belongs to"
        )
    return found


def check_device(device: str) -> None:
    """Checks that torch can use a device.

    Raises:
        ConfigError: It cannot.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        name = "CUDA" if device == "cuda" else device
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device: {name} is not available on this machine ({reason}); use --device cpu") from error


def check_out_file(out: Path, *suffixes: str) -> None:
    """Checks that ``--out`` can be written as a file with one of these endings (any, if there are none).

    Raises:
        VadtuneError: It cannot.
    """
    from vadtune.core.files import check_writable

    if suffixes and out.suffix not in suffixes:
        raise ConfigError(f"--out: takes a file that ends in {suffixes[0]}, got {out}; change the ending")
    if out.is_dir():
        raise ConfigError(f"--out: takes a file, got the folder {out}; name a file in it")
    check_writable(out.absolute().parent)


def check_ratio(ratio: float) -> None:
    """Checks a missing ratio."""
    if not 0 < ratio < 1:
        raise ConfigError(f"--ratio: takes a share of cells above 0 and below 1, got {ratio}; pass 0.5, for example")


def check_count(option: str, count: int, what: str) -> None:
    """Checks that a number of things is at least 1."""
    if count < 1:
        raise ConfigError(f"{option}: takes a number of {what} above 0, got {count}; pass 1 or more")


def check_seed(seed: int) -> None:
    """Checks a seed of numpy's random generators."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed: takes a whole number from 0 to {2**32 - 1}, got {seed}; pass 0, for example")
