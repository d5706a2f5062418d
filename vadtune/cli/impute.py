"""Fill the missing cells of a table of new rows.

Writes the table (CSV, TSV, Parquet, npy, npz) with its missing cells filled by the weighted mean of the models, in the
table's units. Columns are matched by name and keep their order; observed cells stay byte for byte the same. Empty cells
and NaN are missing.

example: vadtune impute best/ table.csv --out filled.csv
example: vadtune impute best/ table.csv --na-values=-999,NA --out filled.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vadtune.cli.arguments import add_model_folder, check_out_file
from vadtune.cli.output import logger
from vadtune.core.errors import ConfigError, DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_model_folder(parser)
    parser.add_argument("table", type=Path, metavar="TABLE", help="rows with the columns of the training data")
    parser.add_argument("--out", type=Path, required=True, help="filled table, with the ending of TABLE (required)")
    parser.add_argument("--na-values", help="texts that also mean missing, such as -999,NA (default: as in training)")


def run(args: argparse.Namespace) -> int:
    """Reads, fills, writes."""
    import numpy as np

    from vadtune.core.files import write_atomically
    from vadtune.tables import Cells, check_columns, open_table

    _check_out(args.table, args.out)
    from vadtune.ensemble.model_average import ModelAverage

    models = ModelAverage.load(args.folder)
    na_values = [*models.na_values, *(args.na_values.split(",") if args.na_values else ())]
    table = open_table(args.table)
    columns = check_columns(args.table, table, models.feature_names)
    try:
        x_nan = table.numbers(columns, Cells(na_values))
        filled = models.fill(x_nan)
    except DataError as error:
        raise DataError(f"{args.table}: {error}") from error
    table_order = np.argsort(columns)
    missing = np.isnan(x_nan)[:, table_order]
    write_atomically(args.out, table.filled(filled.x[:, table_order], missing))
    if filled.empty_rows:
        logger.warning("%d rows have no observed cell: filled from the prior mean alone", filled.empty_rows)
    count = len(models.models)
    by = "one model" if count == 1 else f"the mean of {count} models"
    by += "" if models.regression is None else " and a regression"
    logger.info("filled %d of %d cells by %s: %s", missing.sum(), missing.size, by, args.out)
    return 0


def _check_out(table: Path, out: Path) -> None:
    if out.exists() and table.exists() and out.samefile(table):
        raise ConfigError(f"--out: takes another file than the table that is read, got {out}; pass a new path")
    if out.suffix != table.suffix and not out.is_dir():
        raise ConfigError(f"--out: takes a file of the table's kind, '{table.suffix}', got {out}; change the ending")
    check_out_file(out)
