"""Write configurations of a search file without running the search.

Writes config_0.yaml, config_1.yaml, ...: every point of the grid if the sampler is `grid`, otherwise a random sample.
Each file is a trial configuration, which `vadtune train` accepts. Prints the paths.

example: vadtune configs digits_grid --out configs
example: vadtune configs digits search.seed=1 --samples 10 --out configs
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vadtune.cli.arguments import add_search_file, check_count, read_search
from vadtune.cli.output import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_search_file(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder (required)")
    parser.add_argument("--samples", type=int, metavar="N", help="how many (default: search.samples, or the grid)")


def run(args: argparse.Namespace) -> int:
    """Draws and writes the configurations, and prints their paths."""
    if args.samples is not None:
        check_count("--samples", args.samples, "configurations")
    search = read_search(args)
    from vadtune.core.files import new_folder
    from vadtune.search.algorithms.draw import draw_configurations

    points = draw_configurations(search, args.samples)
    texts = {f"config_{number}.yaml": search.trial_config(point).to_yaml() for number, point in enumerate(points)}
    with new_folder(args.out) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text)
    for name in texts:
        print(args.out / name)
    if args.samples is not None and len(texts) < args.samples:
        logger.warning("%s has only %d configurations, fewer than --samples %d", args.file, len(texts), args.samples)
    logger.info("next: vadtune train %s --out model", args.out / "config_0.yaml")
    return 0
