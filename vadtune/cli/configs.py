"""``vadtune configs FILE``: write the trial configurations of a search, without searching."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from vadtune.cli._shared import add_overrides

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "configs",
        parents=parents,
        help="write the grid or a random sample of a search file as trial configurations",
        description="Write config_0.yaml, config_1.yaml, ...: every point of a search file whose sampler is `grid`, "
        "else a random sample. Each is a trial configuration, which `train` accepts.",
        epilog="example: vadtune configs search_spaces/digits_grid.yaml --out configs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a search file")
    add_overrides(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="how many (default: the file's search.samples, or the whole grid)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws and writes; prints the paths."""
    from vadtune.config import load_search
    from vadtune.core.errors import ConfigError

    if args.samples is not None and args.samples < 1:
        raise ConfigError(f"--samples: takes a number of configurations above 0, got {args.samples}")
    search = load_search(args.file, args.overrides)
    from vadtune.artifacts.model_folder import replaced_folder
    from vadtune.search.algorithms.draw import draw_configurations

    points = draw_configurations(search, args.samples)
    texts = [search.trial_config(point).to_yaml() for point in points]
    with replaced_folder(args.out) as folder:
        for number, text in enumerate(texts):
            (folder / f"config_{number}.yaml").write_text(text)
    for number in range(len(texts)):
        print(args.out / f"config_{number}.yaml")
    if args.samples is not None and len(texts) < args.samples:
        logger.warning("%d configurations asked for, but %s has only %d", args.samples, args.file, len(texts))
    logger.info("next: vadtune train %s --out model", args.out / "config_0.yaml")
    return 0
