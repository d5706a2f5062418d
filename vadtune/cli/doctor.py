"""Check machine or cluster, storage and MLflow before a search.

Prints one line per check: ok, or what to do. The exit code is 1 if a check fails.

example: vadtune doctor
example: vadtune doctor --address auto --storage /shared/runs
"""

from __future__ import annotations

import argparse

from vadtune.cli.arguments import add_storage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_storage(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a line for each check."""
    from vadtune.search.cluster.doctor import examine
    from vadtune.tracking import tracking_uri

    all_ok = True
    for check in examine(address=args.address, storage=args.storage, tracking_uri=tracking_uri(args.tracking_uri)):
        print(f"{'ok' if check.ok else 'PROBLEM':<8} {check.name}: {check.text}", flush=True)
        all_ok = all_ok and check.ok
    return 0 if all_ok else 1
