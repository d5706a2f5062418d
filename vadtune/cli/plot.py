"""``vadtune plot FOLDER``: show what models make of test rows."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from vadtune.cli._shared import console

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "plot",
        parents=parents,
        help="show truth, masked input, imputation and error of test rows",
        description="Show what the mean of the models makes of test rows. Images: truth, what was given (missing "
        "pixels in a colour of their own), imputation and absolute error below each other. Tables: imputed against "
        "true values of the missing cells, a panel per column. Prints the errors, in the source's own units.",
        epilog="example: vadtune plot best/ --ratio 0.5 --out plot.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="what `export` wrote: a model folder, or a folder of them")
    parser.add_argument("--out", type=Path, default=Path("plot.png"), metavar="FILE", help="(default: plot.png)")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of cells to make missing (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="of the mask and of the rows taken (default: 0)")
    parser.add_argument("--rows", type=int, metavar="N", help="test rows (default: 8 images, all rows of a table)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Imputes, draws, prints the errors."""
    from vadtune.core.errors import ConfigError
    from vadtune.core.files import check_writable, write_atomically

    if not 0 < args.ratio < 1:
        raise ConfigError(f"--ratio: takes a share of cells above 0 and below 1, got {args.ratio}")
    if not 0 <= args.seed < 2**32:
        raise ConfigError(f"--seed: takes a whole number from 0 to {2**32 - 1}, got {args.seed}")
    if args.out.is_dir() or args.out.suffix != ".png":
        raise ConfigError(f"--out: takes a file that ends in .png, got {args.out}; name it so")
    check_writable(args.out.absolute().parent)
    from vadtune.evaluation.previews import make_preview
    from vadtune.reports.preview_figure import preview_plot
    from vadtune.reports.tables import to_text

    preview = make_preview(args.folder, ratio=args.ratio, seed=args.seed, rows=args.rows)
    write_atomically(args.out, preview_plot(preview))
    print(to_text(preview.summary(), console()), end="")
    logger.info("wrote %s", args.out)
    return 0
