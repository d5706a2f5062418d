"""Write a search file for your table or a built-in source.

Looks at the data and writes a search space that suits its size. Takes the name of a source, or a table (CSV, TSV,
Parquet, npz, npy). Further values of the data section are passed as data.key=value.

example: vadtune init table.csv --out table.yaml
example: vadtune init table.csv data.na_values=[-99] data.columns=[age,height] --out table.yaml
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from vadtune.cli.arguments import check_out_file, check_ratio
from vadtune.cli.output import logger
from vadtune.core.errors import ConfigError, unknown_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("source", metavar="SOURCE_OR_TABLE", help="a source such as digits, or the path of a table")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="values of the data section")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="new .yaml file (required)")
    parser.add_argument("--ratio", type=float, help="fraction of cells to hide (default: 0.5; 0 if some are missing)")


def run(args: argparse.Namespace) -> int:
    """Looks at the data, writes the file."""
    import numpy as np

    from vadtune.config import TrialConfig, parse_search, parse_trial
    from vadtune.config.default_space import default_space, to_text
    from vadtune.core.files import write_atomically
    from vadtune.data import SOURCES

    _check(args, SOURCES)
    from vadtune.data import load_dataset

    is_table = args.source not in SOURCES or args.source == "file"
    data: dict[str, Any] = {"source": "file", "path": args.source} if is_table else {"source": args.source}
    stem = Path(args.source).stem if is_table else args.source
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip("._-") or "table"

    def configured(missing: object) -> TrialConfig:
        return parse_trial({"name": name, "data": {**data, "missing": missing}}, args.overrides)

    if args.ratio is not None:
        config = configured({"ratio": args.ratio})
    else:
        config = configured("none" if is_table and _has_missing_cells(configured({})) else {"ratio": 0.5})
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
    parse_search({"name": name, "data": section, **space})  # never write an invalid file
    write_atomically(args.out, text.encode())
    logger.info("next: vadtune search %s", args.out)
    print(args.out)
    return 0


def _check(args: argparse.Namespace, sources: Any) -> None:
    if args.out.exists():
        raise ConfigError(f"--out: takes a new file, got {args.out}, which exists; name another")
    check_out_file(args.out, ".yaml", ".yml")
    if args.ratio is not None:
        check_ratio(args.ratio)
    if args.source not in sources and not Path(args.source).suffix:
        raise ConfigError(f"SOURCE_OR_TABLE: {unknown_name('source', args.source, sources)}; or pass a table's path")
    for override in args.overrides:
        if not override.startswith("data."):
            raise ConfigError(f"takes values of the data section, such as data.columns=[a, b], got '{override}'")


def _has_missing_cells(config: Any) -> bool:
    import numpy as np

    return bool(np.isnan(config.data.load().x).any())
