"""Commands about searches: run, resume, list and browse them."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vadtune.artifacts.run_folder import find_run, is_running, local_folder, read_run, run_folders, run_lock
from vadtune.cli import arguments as shared
from vadtune.cli.arguments import argument, command
from vadtune.cli.cleanup import disk_of
from vadtune.cli.output import emit, logger, print_failures, print_table, say
from vadtune.core.errors import ConfigError, TrackingError
from vadtune.core.files import check_writable

if TYPE_CHECKING:
    from vadtune.search.driver.run import SearchOutcome

_LOOPBACK = "127.0.0.1"


@command(shared.search_file(), shared.DATA_DIR, shared.STORAGE, shared.tracking_store(), shared.CLUSTER)
def search(args: argparse.Namespace) -> int:
    """Search for the best configuration with Ray Tune, ASHA and Optuna.

    FILE says which data, which parameters and how long; every trial is logged to MLflow. Prints the best trials.

    example: vadtune search digits
    example: vadtune search my_search.yaml search.samples=20 data.missing.ratio=0.3
    """
    file = shared.read_search(args)  # before the slow imports, so that mistakes are reported at once
    from vadtune.search.driver.start import start_search

    outcome = start_search(file, storage=args.storage, tracking_uri=args.tracking_uri, address=args.address)
    return report(outcome, args)


def report(outcome: SearchOutcome, args: argparse.Namespace) -> int:
    """Prints the best trials of a search and the next commands; returns the exit code."""
    from vadtune.tracking.commands import next_command

    of_search = partial(next_command, folder=outcome.folder, uri=outcome.tracking_uri)
    if outcome.interrupted:
        logger.info("resume it: %s", of_search(f"resume {outcome.run}", address=args.address))
        return 130
    if not outcome.logged:
        best = f"best {outcome.best[0]:.4f} ({outcome.best[1]})" if outcome.best else "no trial has a score"
        logger.info("%s; send the rest to the store later: %s", best, of_search(f"sync {outcome.run}"))
        return print_failures(outcome.failures)
    from vadtune.tracking.run_log import find_results_here
    from vadtune.tracking.table_rows import main_columns, trial_rows

    _, trials, metric = find_results_here(outcome.run, outcome.tracking_uri, outcome.folder.parent)
    best_rows = [row for row in trial_rows(trials, metric) if row["rank"] is not None][:5]
    print_table(main_columns(best_rows, metric))
    logger.info("all trials: %s", of_search(f"results {outcome.experiment}"))
    logger.info("next: %s", of_search(f"export {outcome.experiment} --out best"))
    logger.info("browse: %s", next_command("ui", uri=outcome.tracking_uri))
    return print_failures(outcome.failures)


@command(
    argument("search_run", nargs="?", metavar="RUN", help="unique name of the search, or its folder"),
    shared.STORAGE,
    shared.tracking_store("that of the search"),
    shared.CLUSTER,
    argument("--samples", type=int, metavar="N", help="have N trials in all, with those there are (default: as begun)"),
    argument("--time-budget", metavar="TIME", help="run for TIME in all, such as 2h (default: as begun)"),
)
def resume(args: argparse.Namespace) -> int:
    """Complete a search after a crash or Ctrl-C, or enlarge it.

    Finished trials are kept, unfinished ones continue from their last checkpoint. With --samples or --time-budget, a
    search that has ended goes on too: the sampler knows the trials there are. Without RUN, lists the searches that can
    be resumed.

    example: vadtune resume
    example: vadtune resume digits-20260131-120000-1a2b
    example: vadtune resume digits-20260131-120000-1a2b --samples 128
    """
    if args.samples is not None:
        shared.check_count("--samples", args.samples, "trials")
    storage = local_folder(args.storage)
    if args.search_run is None:
        if args.samples is not None or args.time_budget is not None:
            option = "--time-budget" if args.samples is None else "--samples"
            raise ConfigError(f"RUN: {option} enlarges one search, got no name; see `vadtune list`")
        return _list_unfinished(storage, args.address)
    folder = find_run(args.search_run, storage)
    from vadtune.search.driver.resume import resume_search
    from vadtune.search.resume.enlarge import Enlargement

    wanted = Enlargement(args.samples, args.time_budget)
    outcome = resume_search(folder, tracking_uri=args.tracking_uri, address=args.address, wanted=wanted)
    if outcome is None:
        logger.info("%s is complete, nothing to resume", folder.name)
        return 0
    return report(outcome, args)


def _list_unfinished(storage: Path, address: str | None) -> int:
    from vadtune.tracking.spool import is_finished

    unfinished = [folder for folder in run_folders(storage) if not is_finished(folder) and not is_running(folder)]
    for folder in unfinished:
        say(folder.name)
    logger.info("to resume: %d searches in %s%s", len(unfinished), storage, "" if unfinished else ", nothing to do")
    if unfinished:
        from vadtune.tracking.commands import next_command

        command = next_command(f"resume {unfinished[-1].name}", folder=unfinished[-1], address=address)
        logger.info("next: %s", command)
    return 0


@command(
    argument("experiment", nargs="?", metavar="EXPERIMENT", help="only this name (default: all searches)"),
    shared.FORMAT,
    shared.STORAGE,
    shared.tracking_store(),
)
def list_searches(args: argparse.Namespace) -> None:
    """List the searches in an MLflow store with their state.

    One row per search, newest first: state, trials by how they ended, best score, and the MB that its folder takes if
    it is on this machine. Searches in the state killed, interrupted or failed can be resumed.

    example: vadtune list
    example: vadtune list digits --format csv
    """
    from vadtune.tracking.store import tracking_uri
    from vadtune.tracking.table_rows import search_rows

    uri, storage = tracking_uri(args.tracking_uri), local_folder(args.storage)
    emit(search_rows(uri, args.experiment, storage=storage, running=is_running, disk=disk_of), args.format)


@command(
    argument("search_run", metavar="RUN", help="unique name of the search, or its folder"),
    shared.STORAGE,
    shared.tracking_store("that of the search"),
    argument(
        "--retry-rejected", action="store_true", help="also send the lines that the store rejected again (default: off)"
    ),
    argument("--into", metavar="URI", help="write the whole search into this store (default: off)"),
)
def sync(args: argparse.Namespace) -> None:
    """Send to MLflow what a search could not.

    Use it after a search that ended while the store did not answer. Entries that the store has are not sent again.
    Lines that the store rejected are in mlflow.rejected.jsonl in the search's folder. With --into, the search belongs
    to the other store from then on; use it if its store is lost, or if its run was deleted.

    example: vadtune sync digits-20260131-120000-1a2b
    example: vadtune sync digits-20260131-120000-1a2b --into sqlite:///other.db
    """
    if args.into and (args.retry_rejected or args.tracking_uri):
        other = "--retry-rejected" if args.retry_rejected else "--tracking-uri"
        raise ConfigError(f"--into: sends every line to the store it names, got {other} too; leave it out")
    folder = find_run(args.search_run, local_folder(args.storage))
    run = read_run(folder)
    from vadtune.tracking.places import store_beside
    from vadtune.tracking.redact import without_secrets
    from vadtune.tracking.rejected import rejected_lines
    from vadtune.tracking.store import store_of
    from vadtune.tracking.sync import is_synced, sync_into
    from vadtune.tracking.sync import sync as send_rest

    if args.into:
        with run_lock(folder):
            new = sync_into(folder, args.into, run)
        logger.info("%s: is in %s now, experiment %s", run.run, without_secrets(args.into), new.experiment)
        return
    uri, sent = store_of(store_beside(folder, run), args.tracking_uri), 0
    ids = {"experiment_id": run.experiment_id, "run_id": run.parent_run_id}
    if args.retry_rejected or is_running(folder) or not is_synced(folder, uri, **ids):
        with run_lock(folder):
            sent = send_rest(folder, uri, **ids, retry_rejected=args.retry_rejected)
    done = f"{sent} bytes delivered" if sent else "nothing is left to send"
    logger.info("%s: %s", run.run, done + ("" if rejected_lines(folder) else ", the store has everything"))


@command(
    *shared.EXPERIMENT,
    argument("--format", choices=shared.FORMATS, help="output format (default: the ending of --out, else table)"),
    argument("--sort", metavar="COLUMN", help="sort by this column, ascending (default: rank)"),
    argument("--reverse", action="store_true", help="sort in descending order (default: off)"),
    argument("--top", type=int, metavar="N", help="only the first N trials (default: all)"),
    argument("--columns", metavar="A,B,...", help="these columns, such as trial,latent,epoch (default: see above)"),
    argument("--out", type=Path, metavar="FILE", help="write to this file (default: print)"),
)
def results(args: argparse.Namespace) -> None:
    """List every trial of a search, best first.

    The table has the score and the parameters that vary; CSV and JSON have every metric and parameter.

    example: vadtune results digits
    example: vadtune results digits --out digits.csv
    example: vadtune results digits --sort epoch --reverse --top 10 --columns trial,epoch,val_missing_rmse,latent
    """
    from vadtune.reports.tables import to_text
    from vadtune.tracking.queries import ENSEMBLE_TAG
    from vadtune.tracking.table_rows import chosen_columns, main_columns, sorted_rows, trial_rows

    if args.top is not None:
        shared.check_count("--top", args.top, "trials")
    out: Path | None = args.out
    ending = out.suffix.removeprefix(".") if out else ""
    if out is not None:
        check_writable(out.absolute().parent)
    found, trials, metric = shared.find_search(args)
    rows = sorted_rows(trial_rows(trials, metric), args.sort, reverse=args.reverse)[: args.top]
    shown = main_columns(rows, metric)
    if args.columns is not None:
        rows = shown = chosen_columns(rows, args.columns)
    kind = args.format or (ending if ending in shared.FORMATS else "table")
    emit(rows, kind, lambda console: to_text(shown, console), out)
    if ENSEMBLE_TAG in found.tags:
        logger.info("its ensemble, last exported: %s", found.tags[ENSEMBLE_TAG])
    if out is not None:
        logger.info("wrote %d trials of %s to %s", len(rows), found.name, out)


@command(
    shared.tracking_store(),
    argument("--port", type=int, default=5000, help="port (default: 5000)"),
    argument("--host", default=_LOOPBACK, help=f"address to listen on (default: {_LOOPBACK})"),
    argument("--expose", action="store_true", help="allow a --host that others can reach (default: off)"),
)
def ui(args: argparse.Namespace) -> None:
    """Browse the trials in MLflow's web UI.

    Serves the UI of the store on this machine only. With --host and --expose, other machines can reach it too, without
    a password. If the store is a server, prints its address.

    example: vadtune ui --port 5001
    """
    from vadtune.tracking.moved_artifacts import correct_artifact_folders
    from vadtune.tracking.redact import without_secrets
    from vadtune.tracking.store import sqlite_path, tracking_uri

    uri = tracking_uri(args.tracking_uri)
    if uri.startswith(("http://", "https://", "databricks")):
        say(without_secrets(uri))
        logger.info("the store is a server with its own UI: open the address above")
        return
    exposed = args.host not in (_LOOPBACK, "localhost")
    if exposed and not args.expose:
        raise ConfigError(
            f"--host: {args.host} can be reached by others, who may read, change and delete every experiment of "
            f"{without_secrets(uri)} without a password; add --expose if that is meant"
        )
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise TrackingError(
            f"{path}: the store must exist, and does not; run `vadtune search` first, or pass --tracking-uri"
        )
    if path is not None:
        correct_artifact_folders(path)
    _check_port(args.host, args.port)
    logger.info("MLflow UI on http://%s:%d (Ctrl-C ends it)", args.host, args.port)
    if exposed:
        logger.warning(
            "exposed without a password to all who reach %s:%d: they can read, change and delete every experiment "
            "of %s, its models and files",
            args.host,
            args.port,
            without_secrets(uri),
        )
    # One worker without a job runner starts in a quarter of the time (9 s instead of 34 s) and serves one person.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # not an argument, which other users of the machine could read
    command = [sys.executable, "-m", "mlflow", "server"]
    if exposed:
        command += ["--allowed-hosts", f"{args.host}:{args.port},{socket.gethostname()}:{args.port}"]
    command += ["--host", args.host, "--port", str(args.port), "--workers", "1"]
    if path is not None:
        command += ["--default-artifact-root", (path.parent / "mlruns").as_uri()]
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # the server's libraries warn about each other
    sys.stderr.flush()
    os.execv(sys.executable, command)


def _check_port(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port: takes a port from 1 to 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((host, port))
        except OSError as error:
            option = "--port" if host == _LOOPBACK else "--host, --port"
            raise ConfigError(f"{option}: {port} cannot be used ({error.strerror}); pass another") from error
