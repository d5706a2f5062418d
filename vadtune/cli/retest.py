"""The command ``retest``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vadtune.cli.arguments import FORMAT, MODEL_FOLDER, argument, check_count, check_seed, command, tracking_store
from vadtune.cli.output import emit, logger, progress_line
from vadtune.core.errors import ConfigError
from vadtune.core.files import check_writable, write_atomically
from vadtune.core.reading import check_inside


@command(
    MODEL_FOLDER,
    argument("--ratios", help="missing ratios: 0.1,0.5 or first:last:step, or both (default: 0.1:0.9:0.1)"),
    argument("--seeds", type=int, metavar="N", help="masks per ratio (default: 5)"),
    argument(
        "--missing-mode",
        choices=("fixed", "random"),
        help="fixed: masks of the seeds 0 to N-1, stored in FOLDER/masks.npz; random: new masks (default: fixed)",
    ),
    argument("--seed", type=int, help="first mask seed of --missing-mode random (default: a new one)"),
    argument(
        "--baselines", help="mean,knn,iterative,iterative_trees, or none (default: all, beyond 200 columns mean,knn)"
    ),
    argument(
        "--rows", metavar="N", help="score a random sample of N test rows, or all (default: 10000; all to save them)"
    ),
    argument("--clean", action="store_true", help="reconstruct complete rows: clean.csv (default: off)"),
    argument("--save-predictions", type=Path, help=".npz or .h5 file of all imputations (default: none)"),
    FORMAT,
    argument("--out", type=Path, metavar="DIR", help="folder of the files (default: FOLDER/retest)"),
    argument("--no-log", action="store_true", help="do not log to MLflow (default: off)"),
    tracking_store(),
)
def retest(args: argparse.Namespace) -> int:
    """Test exported models on the test rows with new masks, next to baselines.

    Imputes the test rows, which no search uses, under masks of several missing ratios: with every model, with the
    ensemble, and with baselines fitted on the same train rows. Writes retest.csv, retest_masks.csv (one row per mask)
    and retest.png, and logs them to the search's MLflow run.

    example: vadtune retest best/
    example: vadtune retest best/ --ratios 0.1:0.9:0.1 --seeds 5 --baselines mean,knn
    """
    from vadtune.artifacts.model_folder import find_model_folders

    masked = ("ratios", "seeds", "missing_mode", "seed", "baselines", "save_predictions")
    passed = [f"--{name.replace('_', '-')}" for name in masked if getattr(args, name) is not None]
    if args.clean and passed:
        raise ConfigError(
            f"--clean: hides nothing and takes nothing about masks, got {', '.join(passed)}; leave it out"
        )
    models = find_model_folders(args.folder)
    out: Path = args.out or args.folder / "retest"
    try:
        if args.out is None:  # the folder may be of others, and no link of theirs says where to write
            check_inside(args.folder, out)
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}; pass --out") from error
    check_writable(out)
    return _run_clean(models, out, args) if args.clean else _run_masked(models, out, args)


def _run_masked(models: Sequence[Path], out: Path, args: argparse.Namespace) -> int:
    from vadtune.evaluation.mask_options import parse_ratios, parse_rows
    from vadtune.evaluation.predictions import Predictions, check_predictions_file
    from vadtune.evaluation.retest import run_retest
    from vadtune.reports.retest_figure import retest_plot
    from vadtune.reports.tables import retest_text, to_csv

    ratios, seeds, rows = parse_ratios(args.ratios or "0.1:0.9:0.1"), _mask_seeds(args), parse_rows(args.rows)
    if args.rows is None and args.save_predictions is not None:
        rows = None
    names = None if args.baselines is None else [name.strip() for name in args.baselines.split(",")]
    predictions = None
    if args.save_predictions is not None:
        check_predictions_file(args.save_predictions)
        check_writable(args.save_predictions.absolute().parent)
        predictions = Predictions()
    mode = args.missing_mode or "fixed"
    if mode == "random":
        logger.info("random masks; to repeat them: --missing-mode random --seed %d", seeds[0])
    with progress_line("reading the models") as progress:
        retest = run_retest(
            args.folder,
            ratios,
            seeds,
            store_masks=mode == "fixed",
            baselines=[] if names == ["none"] else names,
            rows=rows,
            predictions=predictions,
            progress=progress,
        )
    contents = {
        out / "retest.csv": to_csv(retest.summary()).encode(),
        out / "retest_masks.csv": to_csv(retest.per_mask()).encode(),
        out / "retest.png": retest_plot(retest),
    }
    for path, content in contents.items():
        write_atomically(path, content)
    emit(retest.summary(), args.format, lambda console: retest_text(retest, console))
    logger.info("wrote %s", ", ".join(map(str, contents)))
    if predictions is not None:
        write_atomically(args.save_predictions, predictions.to_bytes(args.save_predictions.suffix))
        logger.info("wrote %s", args.save_predictions)
    headline = retest.headline
    metrics = {
        f"retest_{metric}_r{ratio:g}": float(value)
        for metric in ("missing_rmse", "missing_mae")
        for ratio, value in zip(retest.ratios, headline.mean(metric), strict=True)
    }
    tag = {"method": headline.name, "mask_seeds": retest.seeds, "missing_mode": mode}
    _log(models, args, metrics=metrics, tags={"vadtune.retest": json.dumps(tag)}, artifacts=list(contents))
    return 0


def _run_clean(models: Sequence[Path], out: Path, args: argparse.Namespace) -> int:
    from vadtune.evaluation.mask_options import parse_rows
    from vadtune.evaluation.retest import run_clean_retest
    from vadtune.reports.tables import to_csv

    with progress_line("reading the models") as progress:
        rows = run_clean_retest(args.folder, rows=parse_rows(args.rows), progress=progress)
    file = out / "clean.csv"
    write_atomically(file, to_csv(rows).encode())
    emit(rows, args.format)
    logger.info("wrote %s", file)
    metrics = {f"retest_clean_{name}": float(str(rows[-1][name])) for name in ("all_rmse", "all_mae")}
    tags = {"vadtune.retest_clean": json.dumps({"method": rows[-1]["method"]})}
    _log(models, args, metrics=metrics, tags=tags, artifacts=[file])
    return 0


def _mask_seeds(args: argparse.Namespace) -> list[int]:
    """Returns the seeds of the masks: 0 to N-1, or N from a random one."""
    from vadtune.evaluation.mask_options import random_seed

    count = 5 if args.seeds is None else args.seeds
    check_count("--seeds", count, "masks", 10_000)
    if args.missing_mode != "random":
        if args.seed is not None:
            raise ConfigError("--seed: belongs to --missing-mode random, got --missing-mode fixed; leave one out")
        return list(range(count))
    first = random_seed() if args.seed is None else args.seed
    check_seed(first)
    return list(range(first, first + count))


def _log(models: Sequence[Path], args: argparse.Namespace, **logged: Any) -> None:
    """Adds metrics, tags and artifacts to the run of the search that the models are from; a failure is only logged."""
    from vadtune.artifacts.model_folder import read_manifest
    from vadtune.ensemble.export import PARENT_RUN
    from vadtune.tracking.delivery import log_to_run
    from vadtune.tracking.redact import short_reason
    from vadtune.tracking.store import connect_existing, tracking_uri

    if args.no_log:
        return
    parents = {read_manifest(model)["provenance"].get(PARENT_RUN) for model in models}
    run_id = parents.pop()
    if parents or run_id is None:
        logger.info("not logged to MLflow: the models are not from one exported search")
        return
    uri = tracking_uri(args.tracking_uri)
    try:
        client = connect_existing(uri)
        log_to_run(client, run_id, **logged)
    except Exception as error:  # the type depends on the store; the results are on disk already
        logger.warning("not logged to MLflow: %s", short_reason(error, uri))
        return
    logger.info("logged to MLflow run %s", run_id)
