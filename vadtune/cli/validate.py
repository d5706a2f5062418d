"""``vadtune validate FILE``: report every problem of a search file at once."""

from __future__ import annotations

import argparse
from typing import Any

from vadtune.cli._shared import add_overrides


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
    from vadtune.search_file import load_search

    search = load_search(args.file, args.overrides)
    print(f"{args.file}: ok, {len(search.domains)} searched parameters")
    return 0
