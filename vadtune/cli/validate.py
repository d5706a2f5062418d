"""``vadtune validate FILE``: report every problem of a search file at once."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from vadtune.cli._shared import add_overrides

if TYPE_CHECKING:
    from vadtune.config import SearchFile

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "validate",
        parents=parents,
        help="report every problem of a search file",
        description="Report every problem of a search file or trial configuration at once.",
        epilog="example: vadtune validate search_spaces/digits.yaml train.epochs=100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="a search file or trial configuration")
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Validates the file; prints one line if all is well."""
    from vadtune.config import load_search

    search = load_search(args.file, args.overrides)
    if search.choices("model.head") != ["plain"]:
        _check_columns(search)
    print(f"{args.file}: ok, {len(search.domains)} searched parameters")
    return 0


def _check_columns(search: SearchFile) -> None:
    """Checks what depends on the data, where the data is there: a file may be checked on another machine."""
    from vadtune.core.errors import DataError
    from vadtune.data import load_dataset
    from vadtune.search.driver.model_checks import check_heads

    try:
        dataset = load_dataset(search.data)
    except DataError as error:
        logger.warning("whether model.head fits the columns was not checked: %s", error)
    else:
        check_heads(search, len(dataset.feature_names))
