"""``vadtune doctor``: check machine, cluster, storage and store before a search."""

from __future__ import annotations

import argparse
from typing import Any

from vadtune.cli.search import add_store_arguments


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "doctor",
        parents=parents,
        help="check machine or cluster, storage and MLflow before a search",
        description="Check what a search needs, one line each: ok, or what to do. Exit code 1 if something is amiss.",
        epilog="example: vadtune doctor --address auto --storage /shared/runs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_store_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a line for each check."""
    from vadtune.search.cluster.doctor import examine
    from vadtune.tracking import tracking_uri

    store = tracking_uri(args.tracking_uri)
    well = True
    for check in examine(address=args.address, storage=args.storage, tracking_uri=store):
        print(f"{'ok' if check.ok else 'PROBLEM':<8} {check.name}: {check.text}", flush=True)
        well = well and check.ok
    return 0 if well else 1
