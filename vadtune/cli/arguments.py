"""How a command is defined, and the arguments and checks that several commands share."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadtune.core.errors import ConfigError, TrackingError, unknown_name
from vadtune.core.files import check_writable
from vadtune.core.shipped import find_search_file

if TYPE_CHECKING:
    from vadtune.config import SearchFile
    from vadtune.tracking.queries import SearchResults, Trial

Argument = Callable[[argparse.ArgumentParser], object]
"""Adds an argument to the parser of a command."""
_Run = Callable[[argparse.Namespace], int | None]


@dataclass(frozen=True)
class Command:
    """A command of vadtune.

    Attributes:
        run: Runs it and returns its exit code (None: 0); its docstring is the help text.
        arguments: Its arguments.
    """

    run: _Run
    arguments: tuple[Argument, ...]


def command(*arguments: Argument) -> Callable[[_Run], Command]:
    """Makes a function a command that takes these arguments."""
    return lambda run: Command(run, arguments)


def argument(*names: str, **settings: Any) -> Argument:
    """Returns an argument; takes what ``argparse.ArgumentParser.add_argument`` takes, numbers in ASCII digits only."""
    kind = settings.get("type")
    if kind in (int, float):

        def number(text: str) -> int | float:
            if not text.isascii() or "_" in text:
                raise ValueError
            return int(text) if kind is int else float(text)

        settings["type"] = number
    return lambda parser: parser.add_argument(*names, **settings)


def search_file(help: str = "search file, or a name of `vadtune spaces`") -> Argument:
    """Returns the arguments for a search file or trial configuration, and overrides of its values."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", help=help)
        parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace those of FILE")

    return add


def tracking_store(default: str = "MLFLOW_TRACKING_URI, else ./mlflow.db") -> Argument:
    """Returns the argument for the URI of the MLflow store."""
    return argument("--tracking-uri", metavar="URI", help=f"MLflow store (default: {default})")


FORMATS = ("table", "csv", "json")
FORMAT = argument("--format", choices=FORMATS, default="table", help="output format (default: table)")
DATA_DIR = argument(
    "--data-dir", type=Path, metavar="DIR", help="folder of downloaded images (default: ~/.cache/vadtune)"
)
DEVICE = argument("--device", default="cpu", help="device to train on: cpu, cuda or cuda:N (default: cpu)")
MODEL_FOLDER = argument("folder", type=Path, metavar="FOLDER", help="exported ensemble, or one model folder of it")
ENSEMBLE = argument(
    "--ensemble",
    default="greedy",
    help="greedy: choose members and weights on held-out cells; top:K: mean of the best K; best (default: greedy)",
)
STORAGE = argument("--storage", default="runs", metavar="DIR", help="folder of the searches (default: runs)")
EXPERIMENT = (
    argument("experiment", metavar="EXPERIMENT", help="name of the search, or its run folder"),
    argument("--run", dest="search_run", metavar="RUN", help="run of the search (default: the latest)"),
    STORAGE,
    tracking_store(),
)
CLUSTER = argument("--address", help="running Ray cluster: host:port or auto (default: start Ray locally)")
JOB = argument("job", metavar="JOB", help="job id, as `vadtune submit` printed it")
JOB_SERVER = argument(
    "--address",
    default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
    metavar="URL",
    help="job server of the cluster (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)",
)


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

    return load_search(find_search_file(args.file), overrides_of(args))


def find_search(args: argparse.Namespace) -> SearchResults:
    """Reads the search that the arguments name from the MLflow store, or from its run folder if the store is gone.

    Raises:
        TrackingError: Neither has such a search, or ``--run`` is a run of another one.
    """
    from vadtune.artifacts.run_folder import local_folder
    from vadtune.tracking.run_log import find_results_here
    from vadtune.tracking.store import tracking_uri

    name = args.search_run or args.experiment
    found = find_results_here(name, tracking_uri(args.tracking_uri), local_folder(args.storage))
    if args.experiment not in (found.search.experiment, found.search.name, name):
        raise TrackingError(
            f"--run: takes a run of {args.experiment}, got {found.search.name} of {found.search.experiment}; "
            "pass the experiment it belongs to"
        )
    return found


def find_trial(trials: Sequence[Trial], name: str, metric: str) -> Trial:
    """Returns the trial of a search that has this name and a score.

    Raises:
        ConfigError: There is none.
    """
    by_name = {trial.name: trial for trial in trials}
    if name not in by_name:
        raise ConfigError(f"--trial: {unknown_name('trial', name, by_name)}")
    trial = by_name[name]
    if trial.status == "FAILED" or not math.isfinite(trial.score(metric)):
        raise ConfigError(f"--trial: needs a trial with a score, got {name} ({trial.end}); see `vadtune results`")
    return trial


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
    if suffixes and out.suffix not in suffixes:
        raise ConfigError(f"--out: takes a file that ends in {suffixes[0]}, got {out}; change the ending")
    if out.is_dir():
        raise ConfigError(f"--out: takes a file, got the folder {out}; name a file in it")
    check_writable(out.absolute().parent)


def check_ratio(ratio: float) -> None:
    """Raises a ConfigError unless --ratio is above 0 and below 1."""
    if not 0 < ratio < 1:
        raise ConfigError(f"--ratio: takes a share of cells above 0 and below 1, got {ratio}; pass 0.5, for example")


def check_count(option: str, count: int, what: str, most: int = 10**6) -> None:
    """Checks that a number of things is at least 1 and at most ``most``."""
    if count > most:
        raise ConfigError(f"{option}: takes at most {most} {what}, got {count}; pass fewer")
    if count < 1:
        raise ConfigError(f"{option}: takes a number of {what} above 0, got {count}; pass 1 or more")


def check_seed(seed: int) -> None:
    """Checks a seed of numpy's random generators."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed: takes a whole number from 0 to {2**32 - 1}, got {seed}; pass 0, for example")
