"""Plot what an exported model imputes for test rows.

Images: truth, input (missing pixels in a separate colour), imputation and absolute error, one below the other. Tables:
imputed against true values of the missing cells, one panel per column. Prints the errors in the units of the source.

example: vadtune plot best/ --ratio 0.5 --out plot.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vadtune.cli.arguments import add_model_folder, check_out_file, check_ratio, check_seed
from vadtune.cli.output import logger, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_model_folder(parser)
    parser.add_argument("--out", type=Path, default=Path("plot.png"), help="a .png file (default: plot.png)")
    parser.add_argument("--ratio", type=float, default=0.5, help="fraction of cells to hide (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mask and the rows (default: 0)")
    parser.add_argument("--rows", type=int, metavar="N", help="number of test rows (default: 8 images; all of a table)")


def run(args: argparse.Namespace) -> int:
    """Imputes, draws, prints the errors."""
    check_ratio(args.ratio)
    check_seed(args.seed)
    check_out_file(args.out, ".png")
    from vadtune.core.files import write_atomically
    from vadtune.evaluation.previews import make_preview
    from vadtune.reports.preview_figure import preview_plot

    preview = make_preview(args.folder, ratio=args.ratio, seed=args.seed, rows=args.rows)
    write_atomically(args.out, preview_plot(preview))
    print_table(preview.summary())
    logger.info("wrote %s", args.out)
    return 0
