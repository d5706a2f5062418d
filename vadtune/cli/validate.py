"""Report every problem of a search file.

Also takes a trial configuration. If the data can be read, its columns are checked too.

example: vadtune validate digits
example: vadtune validate my_search.yaml train.epochs=100
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vadtune.cli.arguments import add_search_file, read_search
from vadtune.cli.output import logger

if TYPE_CHECKING:
    from vadtune.config import SearchFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_search_file(parser, "search file, a name of `vadtune spaces`, or a trial configuration")


def run(args: argparse.Namespace) -> int:
    """Validates the file; prints one line if it has no problems."""
    search = read_search(args)
    if search.choices("model.head") != ["plain"]:
        _check_columns(search)
    print(f"{args.file}: ok, {len(search.domains)} searched parameters")
    return 0


def _check_columns(search: SearchFile) -> None:
    """Checks the columns of the data; warns if the data cannot be read, as it may be on another machine."""
    from vadtune.core.errors import DataError
    from vadtune.data import load_dataset
    from vadtune.search.driver.model_checks import check_heads

    try:
        dataset = load_dataset(search.data)
    except DataError as error:
        logger.warning("could not check whether model.head fits the columns: %s", error)
    else:
        check_heads(search, len(dataset.feature_names))
