"""List the search files that come with vadtune, or print one.

Without NAME, prints the name of each file and what it searches. With NAME, prints the YAML of that file, to copy and
edit. Commands that take a search file also take these names.

example: vadtune spaces
example: vadtune spaces digits > digits.yaml
"""

from __future__ import annotations

import argparse

from vadtune.core.errors import ConfigError, unknown_name
from vadtune.core.shipped import description_of, shipped_search_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="print the YAML of this file (default: list all)")


def run(args: argparse.Namespace) -> int:
    """Prints the list, or a file."""
    files = shipped_search_files()
    if args.name is None:
        width = max(map(len, files), default=0)
        for name, path in files.items():
            print(f"{name:<{width}}  {description_of(path)}")
        return 0
    if args.name not in files:
        raise ConfigError(f"NAME: {unknown_name('search file', args.name, files)}")
    print(files[args.name].read_text(), end="")
    return 0
