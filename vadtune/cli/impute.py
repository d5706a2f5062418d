"""``vadtune impute FOLDER TABLE``: fill the holes of new rows."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "impute",
        parents=parents,
        help="fill the holes of a table of new rows",
        description="Fill the holes of a table (CSV, TSV, Parquet, npy, npz) with the average of the models, in the "
        "table's own units. Columns are matched by name and keep their order; observed cells stay byte for byte what "
        "they were. Empty cells and NaN are holes.",
        epilog="example: vadtune impute best/ table.csv --out filled.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="what `export` wrote: a model folder, or a folder of them")
    parser.add_argument("table", type=Path, help="rows with the columns the models were trained on")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the filled table, of the same kind")
    parser.add_argument(
        "--na-values", metavar="TEXTS", help="what means a hole too: --na-values=-999,NA (beside what did in training)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads, fills, writes."""
    import numpy as np

    from vadtune.core.errors import DataError
    from vadtune.core.files import check_writable, write_atomically
    from vadtune.tables import Cells, check_columns, open_table

    _check_out(args.table, args.out)
    check_writable(args.out.absolute().parent)
    from vadtune.ensemble.model_average import ModelAverage

    models = ModelAverage.load(args.folder)
    named = args.na_values.split(",") if args.na_values else ()
    table = open_table(args.table)
    places = check_columns(args.table, table, models.feature_names)
    try:
        given = table.numbers(places, Cells([*models.na_values, *named]))
        filled = models.fill(given)
    except DataError as error:
        raise DataError(f"{args.table}: {error}") from error
    back = np.argsort(places)  # the table's own order
    holes = np.isnan(given)[:, back]
    write_atomically(args.out, table.filled(filled.x[:, back], holes))
    if filled.empty_rows:
        logger.warning("%d rows have no observed cell: filled from the prior mean alone", filled.empty_rows)
    count = len(models.models)
    by = "one model" if count == 1 else f"the mean of {count} models"
    by += "" if models.regression is None else " and a regression"
    logger.info("filled %d of %d cells by %s: %s", holes.sum(), holes.size, by, args.out)
    return 0


def _check_out(table: Path, out: Path) -> None:
    from vadtune.core.errors import ConfigError

    if out.is_dir():
        raise ConfigError(f"--out: takes a file, got the folder {out}; name a file in it")
    if out.exists() and table.exists() and out.samefile(table):
        raise ConfigError(f"--out: takes another file than the table that is read, got {out}; name a new one")
    if out.suffix != table.suffix:
        raise ConfigError(f"--out: takes a file of the table's kind, '{table.suffix}', got {out}; name it so")
