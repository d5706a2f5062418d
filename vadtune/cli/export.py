"""Write an ensemble of a search's models as one folder.

Chooses models and weights on held-out cells, trains the models again on more rows, and writes a folder that retest,
plot and impute use as one model: ensemble.json, regression.safetensors (if a regression is part of the ensemble), and
for each model its configuration (which `vadtune train` accepts), weights, latents, scaler, metrics, package versions
and a manifest with the hash of each file.

example: vadtune export digits --out best/
example: vadtune export digits --ensemble top:3 --refit all-observed --out best/
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vadtune.cli.arguments import add_device, add_ensemble, add_search, check_device, find_search
from vadtune.cli.output import logger, print_table
from vadtune.core.processes import start_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_search(parser)
    add_ensemble(parser)
    parser.add_argument(
        "--refit",
        default="train+validation",
        metavar="ROWS",
        help="rows to train the members on again: train, train+validation, all-observed (also the observed cells of "
        "the test rows; only the cells that the mask hid can test it then), or none (default: train+validation)",
    )
    parser.add_argument(
        "--no-regression",
        action="store_true",
        help="leave out the kernel regression, which is added if it lowers the held-out error (default: off)",
    )
    add_device(parser)
    parser.add_argument("--out", type=Path, default=Path("best"), help="new or empty folder (default: best)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in --out (default: off)")


def run(args: argparse.Namespace) -> int:
    """Exports and prints the members."""
    if args.refit != "none" and args.device == "cpu":
        start_server()  # before this process imports large libraries
    from vadtune.ensemble.export import check_out, check_refit, export_best
    from vadtune.ensemble.selection import parse_ensemble
    from vadtune.tracking.rows import main_columns, trial_rows

    parse_ensemble(args.ensemble)  # before connecting to a store
    check_refit(args.refit)
    check_device(args.device)
    check_out(args.out, overwrite=args.overwrite)
    search, trials, metric = find_search(args)
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
    by_trial = {row["trial"]: row for row in main_columns(trial_rows(exported.trials, metric), metric)}
    rows = [
        {
            "folder": str(args.out / member.folder),
            "weight": f"{member.weight:.3f}",
            "held_out_rmse": member.rmse,
            **{name: value for name, value in by_trial[member.trial].items() if name not in ("rank", metric)},
        }
        for member in exported.ensemble.members
    ]
    print_table(rows)
    print(f"ensemble: {exported.ensemble.line()}")
    logger.info("next: vadtune retest %s", args.out)
    return 0
