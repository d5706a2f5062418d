"""The command ``compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from vadtune.cli.arguments import ENSEMBLE, FORMAT, argument, check_count, command, tracking_store
from vadtune.cli.output import emit, logger, print_failures
from vadtune.core.errors import ConfigError
from vadtune.core.files import check_writable, write_atomically
from vadtune.core.shipped import find_search_file


@command(
    argument(
        "files",
        nargs="+",
        metavar="FILE|key.path=value",
        help="search files (paths or names of `vadtune spaces`), and values that replace those of every file",
    ),
    argument(
        "--vary",
        action="append",
        default=[],
        metavar="key.path=value[+key.path=value],...",
        help="run each file with each value; + adds a value to one of them; null: the default; can be repeated",
    ),
    argument("--ratios", default="0.1:0.9:0.2", help="missing ratios (default: 0.1:0.9:0.2)"),
    argument("--seeds", type=int, default=5, metavar="N", help="test masks per ratio (default: 5)"),
    ENSEMBLE,
    argument("--out", type=Path, required=True, metavar="DIR", help="folder of the comparison (required)"),
    FORMAT,
    tracking_store(),
)
def compare(args: argparse.Namespace) -> int:
    """Run searches at several missing ratios and plot their errors.

    Runs a search for each file and each ratio, retests its ensemble at that ratio, and plots error against missing
    ratio, one line per file: solid if train rows have as many missing cells as test rows, dotted if they are complete.
    Writes compare.csv and compare.png. After Ctrl-C or a crash, the same command skips what is done and resumes the
    rest.

    example: vadtune compare digits digits_vae search.samples=16 --ratios 0.1:0.9:0.2 --out comparison
    example: vadtune compare digits --vary model.family=vad,vae+infer.steps=0 --out families
    """
    check_count("--seeds", args.seeds, "masks", 10_000)
    overrides = [text for text in args.files if "=" in text and not Path(text).exists()]
    files = [find_search_file(text) for text in args.files if text not in overrides]
    if not files:
        raise ConfigError(f"FILE: needs a search file at least, got {', '.join(overrides)}; name one")
    check_writable(args.out)
    from vadtune.ensemble.selection import parse_ensemble
    from vadtune.evaluation.compare import plan, run_comparison
    from vadtune.evaluation.mask_options import parse_ratios
    from vadtune.reports.comparison_figure import comparison_plot
    from vadtune.reports.tables import to_csv, to_text
    from vadtune.tracking.store import tracking_uri

    parse_ensemble(args.ensemble)
    cells = plan(files, overrides, parse_ratios(args.ratios), args.out, args.vary)
    uri = tracking_uri(args.tracking_uri)
    done = run_comparison(cells, ensemble=args.ensemble, seeds=list(range(args.seeds)), uri=uri, progress=logger.info)
    if done.interrupted:
        logger.info("%s was interrupted; run the same command again to resume it", done.interrupted)
        return 130
    code = print_failures(done.failures)
    if not done.rows:
        return 1
    write_atomically(args.out / "compare.csv", to_csv(done.rows).encode())
    write_atomically(args.out / "compare.png", comparison_plot(done.rows))
    emit(done.rows, args.format, lambda console: to_text(_by_ratio(done.rows), console))
    logger.info("wrote %s and %s", args.out / "compare.csv", args.out / "compare.png")
    return code


def _by_ratio(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Returns one row per search, with its missing_rmse in a column per ratio."""
    ratios = sorted({float(str(row["missing_ratio"])) for row in rows})
    scores = {(row["search"], row["missing_ratio"]): row["missing_rmse"] for row in rows}
    trained_on = {row["search"]: row["trained_on"] for row in reversed(rows)}
    return [
        {
            "search": search,
            "trained_on": trained_on[search],
            **{f"{ratio:g}": scores.get((search, ratio)) for ratio in ratios},
        }
        for search in dict.fromkeys(row["search"] for row in rows)
    ]
