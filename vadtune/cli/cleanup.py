"""Commands that free disk space: prune and delete."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vadtune.artifacts.run_folder import find_run, is_uri, local_folder, read_run, run_lock
from vadtune.cli import arguments as shared
from vadtune.cli.arguments import argument, command
from vadtune.cli.output import logger, print_table
from vadtune.core.errors import ConfigError

_RUN = argument("search_run", metavar="RUN", help="unique name of the search, or its folder")
_YES = argument("--yes", action="store_true", help="do not ask (default: ask on a terminal, else only list)")


@command(
    _RUN,
    argument("--keep", type=int, metavar="K", help="trials whose models stay (default: 32, what export chooses from)"),
    shared.STORAGE,
    _YES,
)
def prune(args: argparse.Namespace) -> None:
    """Delete the models of a search that export does not need.

    Keeps the last checkpoints of the best K trials, and the scores and held-out predictions of all. An export of the
    search is the same as before unless K is less than 32; a trial whose model is deleted cannot be exported by --trial.

    example: vadtune prune digits-20260131-120000-1a2b
    example: vadtune prune digits-20260131-120000-1a2b --keep 8 --yes
    """
    from vadtune.ensemble.selection import MOST_CANDIDATES

    keep = MOST_CANDIDATES if args.keep is None else args.keep
    shared.check_count("--keep", keep, "trials")
    from vadtune.artifacts.disk_use import check_no_links, delete_all, disk_use
    from vadtune.ensemble.pruning import plan_pruning

    folder = find_run(args.search_run, local_folder(args.storage))
    if is_uri(tune := read_run(folder).tune):
        raise ConfigError(f"RUN: prune deletes in folders only, and its checkpoints are at {tune}; delete them there")
    check_no_links(folder)
    with run_lock(folder):
        plan = plan_pruning(folder, keep)
        if not plan.deleted:
            logger.info("%s: nothing to delete, it has the models of %d trials", folder.name, len(plan.kept))
            return
        kept, deleted = (sum(map(disk_use, paths)) for paths in plan)
        print_table(
            [
                {"what": f"models of the best {len(plan.kept)} trials", "MB": _megabytes(kept), "": "kept"},
                {"what": "other checkpoints", "MB": _megabytes(deleted), "": "deleted"},
            ]
        )
        if _is_wanted(args):
            delete_all(plan.deleted)
            logger.info("%s: %s MB deleted", folder.name, _megabytes(deleted))


@command(
    _RUN,
    argument("--mlflow", action="store_true", help="also delete its MLflow runs (default: off)"),
    shared.STORAGE,
    shared.tracking_store("that of the search"),
    _YES,
)
def delete(args: argparse.Namespace) -> None:
    """Delete a search.

    Deletes the search's folder and, with --mlflow, its run and the runs of its trials. Exported ensembles stay. MLflow
    keeps deleted runs until `mlflow gc`, and restores them by `mlflow runs restore`.

    example: vadtune delete digits-20260131-120000-1a2b
    example: vadtune delete digits-20260131-120000-1a2b --mlflow --yes
    """
    from vadtune.artifacts.disk_use import check_no_links, delete_run_folder, disk_use

    folder = find_run(args.search_run, local_folder(args.storage))
    run = read_run(folder)
    check_no_links(folder)
    with run_lock(folder):
        rows = [{"what": "folder", "where": str(folder), "size": f"{_megabytes(disk_use(folder))} MB"}]
        runs = None
        if args.mlflow:
            from vadtune.tracking.places import store_beside
            from vadtune.tracking.redact import without_secrets
            from vadtune.tracking.removal import SearchRuns
            from vadtune.tracking.store import store_of

            uri = store_of(store_beside(folder, run), args.tracking_uri)
            runs = SearchRuns(folder, run, uri)
            rows.append({"what": "MLflow runs", "where": without_secrets(uri), "size": f"{len(runs.ids)} runs"})
        print_table(rows)
        if not _is_wanted(args):
            return
        if runs is not None:
            runs.delete()
        others = delete_run_folder(folder)
    logger.info("%s: deleted%s", run.run, "" if runs is None else f", with {len(runs.ids)} MLflow runs")
    if others:
        logger.warning("%s stays, with what no search wrote: %s", folder, ", ".join(others[:3]))
    if is_uri(run.tune):
        logger.warning("its checkpoints stay at %s; delete them there", run.tune)


def _is_wanted(args: argparse.Namespace) -> bool:
    """Returns whether to delete what was listed.

    Raises:
        ConfigError: Nobody can be asked, and --yes is not given.
    """
    if args.yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError("--yes: must be given where nobody can be asked; nothing was deleted, add --yes")
    sys.stderr.write("delete it? [y/N] ")
    sys.stderr.flush()
    is_wanted = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not is_wanted:
        logger.info("nothing was deleted")
    return is_wanted


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"


def disk_of(folder: Path) -> float:
    """Returns the MB that a run folder takes."""
    from vadtune.artifacts.disk_use import disk_use

    return round(disk_use(folder) / 1e6, 1)
