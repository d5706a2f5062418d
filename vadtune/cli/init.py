"""``vadtune init SOURCE_OR_TABLE --out FILE.yaml``: write a search file for data."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "init",
        parents=parents,
        help="write a search file for a source or a table of yours",
        description="Write a search file whose space suits the size of the data: a source by its name, or a table "
        "(CSV, Parquet, npz, npy). What the data section needs beside that is given as key.path=value.",
        epilog="example: vadtune init table.csv --out table.yaml\n"
        "         vadtune init table.csv data.na_values=[-99] data.columns=[age,height] --out table.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE_OR_TABLE", help="a source such as digits, or a file")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="values of the data section")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the search file; must not exist")
    parser.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help="share of cells to hide (default: 0.5; none of a table that has holes of its own)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks at the data, writes the file."""
    import numpy as np

    from vadtune.config import TrialConfig, parse_search, parse_trial
    from vadtune.config.default_space import default_space, to_text
    from vadtune.core.files import check_writable, write_atomically
    from vadtune.data import SOURCES

    _check(args)
    check_writable(args.out.absolute().parent)
    from vadtune.data import load_dataset

    own = args.source not in SOURCES or args.source == "file"
    data: dict[str, Any] = {"source": "file", "path": args.source} if own else {"source": args.source}
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(args.source).stem if own else args.source).lstrip("._-") or "table"

    def configured(missing: object) -> TrialConfig:
        return parse_trial({"name": name, "data": {**data, "missing": missing}}, args.overrides)

    if args.ratio is not None:
        config = configured({"ratio": args.ratio})
    else:
        config = configured("none" if own and _has_holes(configured({})) else {"ratio": 0.5})
    train = load_dataset(config.data).train
    rows, columns = train.x.shape
    missing = 1 - float(train.mask.mean())
    observed = train.x[:, train.mask.any(axis=0)]
    space = default_space(rows, columns, float(np.nanvar(observed, axis=0).mean()), missing)
    section = config.data.model_dump(exclude_unset=True)
    if config.data.missing.ratio == 0:
        section["missing"] = "none"
    header = (
        f"{rows} train rows of {columns} columns, {missing:.0%} of their cells missing.\n    vadtune search {args.out}"
    )
    text = to_text(header, name, section, space)
    parse_search({"name": name, "data": section, **space})  # whatever was written is valid
    write_atomically(args.out, text.encode())
    logger.info("next: vadtune search %s", args.out)
    print(args.out)
    return 0


def _check(args: argparse.Namespace) -> None:
    from vadtune.core.errors import ConfigError, unknown_name
    from vadtune.data import SOURCES

    if args.out.exists():
        raise ConfigError(f"--out: takes a new file, got {args.out}, which exists; name another")
    if args.out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out: takes a file that ends in .yaml, got {args.out}; name it so")
    if args.ratio is not None and not 0 < args.ratio < 1:
        raise ConfigError(f"--ratio: takes a share of cells above 0 and below 1, got {args.ratio}; name one")
    if args.source not in SOURCES and not Path(args.source).suffix:
        raise ConfigError(f"SOURCE_OR_TABLE: {unknown_name('source', args.source, SOURCES)}; or name a table's file")
    for override in args.overrides:
        if not override.startswith("data."):
            raise ConfigError(f"takes values of the data section, such as data.columns=[a, b], got '{override}'")


def _has_holes(config: Any) -> bool:
    """Whether a table has holes of its own."""
    import numpy as np

    return bool(np.isnan(config.data.load().x).any())
