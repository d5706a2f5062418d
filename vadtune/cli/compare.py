"""``vadtune compare FILE [FILE …]``: several searches over several missing ratios, in one figure."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from vadtune.cli._shared import FORMATS, add_ensemble_argument, add_tracking_argument, emit

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "compare",
        parents=parents,
        help="run several searches over several missing ratios and draw their errors",
        description="Run a search for each file and each ratio, retest its ensemble at that ratio, and "
        "draw error against missing ratio, a line for each file: solid where train rows miss as much as test rows, "
        "dotted where they are complete. Writes compare.csv and compare.png. The same command goes on after Ctrl-C or "
        "a crash: what is done is skipped, a search in the middle is resumed.",
        epilog="example: vadtune compare search_spaces/digits.yaml search_spaces/digits_vae.yaml "
        "search.samples=16 --ratios 0.1:0.9:0.2 --out comparison",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE|key.path=value", help="search files, and values that replace those of each"
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="key.path=value[+key.path=value],...",
        help="take each file with each of these values, and what + adds to it, a line for each; may be repeated; null "
        "for the default",
    )
    parser.add_argument("--ratios", default="0.1:0.9:0.2", help="missing ratios (default: 0.1:0.9:0.2)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="test masks for each ratio (default: 5)")
    add_ensemble_argument(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the comparison")
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed (default: table)")
    add_tracking_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs what is not done, draws, prints."""
    from vadtune.core.errors import ConfigError
    from vadtune.core.files import check_writable, write_atomically

    if args.seeds < 1:
        raise ConfigError(f"--seeds: takes a number of masks above 0, got {args.seeds}")
    overrides = [text for text in args.files if "=" in text and not Path(text).exists()]
    files = [Path(text) for text in args.files if text not in overrides]
    if not files:
        raise ConfigError(f"FILE: needs a search file at least, got {', '.join(overrides)}; name one")
    check_writable(args.out)
    from vadtune.ensemble.selection import parse_ensemble
    from vadtune.evaluation.compare import plan, run_comparison
    from vadtune.evaluation.mask_options import parse_ratios
    from vadtune.reports.comparison_figure import comparison_plot
    from vadtune.reports.tables import to_csv, to_text
    from vadtune.tracking import tracking_uri

    parse_ensemble(args.ensemble)
    ratios = parse_ratios(args.ratios)
    cells = plan(files, overrides, ratios, args.out, args.vary)
    uri = tracking_uri(args.tracking_uri)
    done = run_comparison(cells, ensemble=args.ensemble, seeds=list(range(args.seeds)), uri=uri, progress=logger.info)
    if done.interrupted:
        logger.info("%s was interrupted; the same command goes on from there", done.interrupted)
        return 130
    for name, reason in done.failures.items():
        logger.error("%s failed: %s", name, reason)
    if not done.rows:
        return 1
    write_atomically(args.out / "compare.csv", to_csv(done.rows).encode())
    write_atomically(args.out / "compare.png", comparison_plot(done.rows))
    emit(done.rows, args.format, lambda console: to_text(_table(done.rows), console))
    logger.info("wrote %s and %s", args.out / "compare.csv", args.out / "compare.png")
    return 1 if done.failures else 0


def _table(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Returns a row for each search: its missing_rmse by ratio."""
    ratios = sorted({float(str(row["missing_ratio"])) for row in rows})
    return [
        {
            "search": search,
            "trained_on": next(row["trained_on"] for row in rows if row["search"] == search),
            **{f"{ratio:g}": _score(rows, search, ratio) for ratio in ratios},
        }
        for search in dict.fromkeys(str(row["search"]) for row in rows)
    ]


def _score(rows: list[dict[str, object]], search: str, ratio: float) -> object:
    found = [row["missing_rmse"] for row in rows if (row["search"], row["missing_ratio"]) == (search, ratio)]
    return found[0] if found else None
