"""``vadtune export EXPERIMENT``: write the best models of a search as folders."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from vadtune.cli._shared import add_search_arguments, console, find

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "export",
        parents=parents,
        help="write the best models of a search as folders",
        description="Write the best models of a search as folders: configuration (a file `train` accepts), weights, "
        "train latents, scaler, metrics, package versions, and a manifest with the hash of each.",
        epilog="example: vadtune export digits --top 3 --out best/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_search_arguments(parser)
    parser.add_argument("--top", type=int, default=3, help="number of models (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("best"), help="new or empty folder (default: best)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier export in --out, with its retest results"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exports and prints what was exported."""
    from vadtune.errors import ConfigError
    from vadtune.export import check_out, export_best
    from vadtune.report import to_text
    from vadtune.results import main_columns, trial_rows

    if args.top < 1:
        raise ConfigError(f"--top: takes a number of models above 0, got {args.top}")
    check_out(args.out, overwrite=args.overwrite)  # before a store is asked
    search, trials, metric = find(args)
    exported = export_best(search, trials, metric=metric, top=args.top, out=args.out, overwrite=args.overwrite)
    described = main_columns(trial_rows([model.trial for model in exported], metric), metric)
    rows = [
        {"folder": str(args.out / model.folder.name), **{name: row[name] for name in row if name != "rank"}}
        for model, row in zip(exported, described, strict=True)
    ]
    print(to_text(rows, console()), end="")
    logger.info("exported %d of %d trials of %s", len(exported), len(trials), search.name)
    logger.info("next: vadtune retest %s", args.out)
    return 0
