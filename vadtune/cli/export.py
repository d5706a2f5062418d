"""``vadtune export EXPERIMENT``: write an ensemble of a search's models as one folder."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from vadtune.cli._shared import add_ensemble_argument, add_search_arguments, check_device, console, find
from vadtune.core.processes import start_server

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "export",
        parents=parents,
        help="write an ensemble of a search's models as one folder",
        description="Choose models of a search, and their weights, on held-out cells, train them anew on more rows, "
        "and write them as one folder that retest, plot and impute take as one model: ensemble.json, a regression "
        "(regression.safetensors) where one goes with them, and of each model "
        "its configuration (a file `train` accepts), weights, latents, scaler, metrics, package versions, and a "
        "manifest with the hash of each.",
        epilog="example: vadtune export digits --out best/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_search_arguments(parser)
    add_ensemble_argument(parser)
    parser.add_argument(
        "--refit",
        default="train+validation",
        metavar="ROWS",
        help="train the members anew on: train, train+validation (default), or all-observed, which adds the observed "
        "cells of the test rows, so that only the mask that hid the others can test it; none: keep them as they are",
    )
    parser.add_argument(
        "--no-regression",
        action="store_true",
        help="leave out the kernel regression of each column on the others that goes with a greedy ensemble where it "
        "lowers the held-out error",
    )
    parser.add_argument("--device", default="cpu", help="where to train anew: cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("best"), help="new or empty folder (default: best)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier export in --out, with its retest results"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exports and prints what was exported."""
    if args.refit != "none" and args.device == "cpu":
        start_server()  # before this process imports as much
    from vadtune.ensemble.candidates import parse_ensemble
    from vadtune.ensemble.export import check_out, check_refit, export_best
    from vadtune.reports.tables import to_text
    from vadtune.tracking.rows import main_columns, trial_rows

    parse_ensemble(args.ensemble)  # before a store is asked
    check_refit(args.refit)
    check_device(args.device)
    check_out(args.out, overwrite=args.overwrite)
    search, trials, metric = find(args)
    exported = export_best(
        search,
        trials,
        metric=metric,
        out=args.out,
        ensemble=args.ensemble,
        refit=args.refit,
        regress=not args.no_regression,
        device=args.device,
        overwrite=args.overwrite,
        progress=logger.info,
    )
    described = {row["trial"]: row for row in main_columns(trial_rows(exported.trials, metric), metric)}
    rows = [
        {
            "folder": str(args.out / member.folder),
            "weight": f"{member.weight:.3f}",
            "held_out_rmse": member.rmse,
            **{name: value for name, value in described[member.trial].items() if name not in ("rank", metric)},
        }
        for member in exported.ensemble.members
    ]
    print(to_text(rows, console()), end="")
    print(f"ensemble: {exported.ensemble.line()}")
    logger.info("next: vadtune retest %s", args.out)
    return 0
