"""``vadtune retest FOLDER``: exported models and baselines on the sealed test rows."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vadtune.cli._shared import FORMATS, add_tracking_argument, emit

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "retest",
        parents=parents,
        help="test exported models under fresh masks, beside baselines",
        description="Impute the test rows, which no search has seen, under masks of many missing ratios: with every "
        "model, with the mean of the models' imputations, and with baselines fitted on the same train rows. Writes "
        "retest.csv, retest_masks.csv (a row per mask) and retest.png, and logs them to the search's MLflow run.",
        epilog="example: vadtune retest best/ --ratios 0.1:0.9:0.1 --seeds 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="what `export` wrote: a model folder, or a folder of them")
    parser.add_argument("--ratios", help="missing ratios: 0.1,0.5 or first:last:step, or both (default: 0.1:0.9:0.1)")
    parser.add_argument("--seeds", type=int, metavar="N", help="masks for each ratio (default: 5)")
    parser.add_argument(
        "--missing-mode",
        choices=("fixed", "random"),
        help="fixed: the masks of seeds 0 to N-1, kept in FOLDER/masks.npz (default); random: new masks",
    )
    parser.add_argument("--seed", type=int, help="first mask seed of --missing-mode random, to repeat it")
    parser.add_argument(
        "--baselines", metavar="NAMES", help="mean, knn, iterative, iterative_trees, or none (default: all)"
    )
    parser.add_argument(
        "--clean", action="store_true", help="hide nothing: the error of reconstructing complete test rows (clean.csv)"
    )
    parser.add_argument(
        "--save-predictions",
        type=Path,
        metavar="FILE",
        help="what each model imputed under each mask, with masks and names: an .npz or .h5 file",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed (default: table)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the files (default: FOLDER/retest)")
    parser.add_argument("--no-log", action="store_true", help="do not log to MLflow")
    add_tracking_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Retests, writes, prints, logs."""
    from vadtune.artifacts.model_folder import find_model_folders
    from vadtune.core.files import check_writable

    _check_options(args)
    models = find_model_folders(args.folder)
    out: Path = args.out or args.folder / "retest"
    check_writable(out)
    return _run_clean(models, out, args) if args.clean else _run_masked(models, out, args)


def _run_masked(models: Sequence[Path], out: Path, args: argparse.Namespace) -> int:
    from vadtune.core.files import check_writable, write_atomically
    from vadtune.evaluation.baselines import BASELINES
    from vadtune.evaluation.mask_options import parse_ratios
    from vadtune.evaluation.predictions import Predictions, check_predictions_file
    from vadtune.evaluation.retest import run_retest
    from vadtune.reports.retest_figure import retest_plot
    from vadtune.reports.tables import retest_text, to_csv

    ratios, seeds = parse_ratios(args.ratios or "0.1:0.9:0.1"), _mask_seeds(args)
    names = list(BASELINES) if args.baselines is None else [name.strip() for name in args.baselines.split(",")]
    predictions = None
    if args.save_predictions is not None:
        check_predictions_file(args.save_predictions)
        check_writable(args.save_predictions.absolute().parent)
        predictions = Predictions()
    if args.missing_mode == "random":
        logger.info("random masks; to repeat them: --missing-mode random --seed %d", seeds[0])
    with _progress() as progress:
        retest = run_retest(
            args.folder,
            ratios,
            seeds,
            store_masks=args.missing_mode != "random",
            baselines=[] if names == ["none"] else names,
            predictions=predictions,
            progress=progress,
        )
    contents = {
        "retest.csv": to_csv(retest.summary()).encode(),
        "retest_masks.csv": to_csv(retest.per_mask()).encode(),
        "retest.png": retest_plot(retest),
    }
    for name, content in contents.items():
        write_atomically(out / name, content)
    emit(retest.summary(), args.format, lambda console: retest_text(retest, console))
    logger.info("wrote %s", ", ".join(str(out / name) for name in contents))
    if predictions is not None:
        write_atomically(args.save_predictions, predictions.to_bytes(args.save_predictions.suffix))
        logger.info("wrote %s", args.save_predictions)
    headline = retest.headline
    metrics = {
        f"retest_{metric}_r{ratio:g}": float(value)
        for metric in ("missing_rmse", "missing_mae")
        for ratio, value in zip(retest.ratios, headline.mean(metric), strict=True)
    }
    mode = args.missing_mode or "fixed"
    described = {"method": headline.name, "mask_seeds": retest.seeds, "missing_mode": mode}
    _log(models, metrics, {"vadtune.retest": described}, [out / name for name in contents], args)
    return 0


def _run_clean(models: Sequence[Path], out: Path, args: argparse.Namespace) -> int:
    from vadtune.core.files import write_atomically
    from vadtune.evaluation.retest import run_clean_retest
    from vadtune.reports.tables import to_csv, to_text

    with _progress() as progress:
        rows = run_clean_retest(args.folder, progress=progress)
    file = out / "clean.csv"
    write_atomically(file, to_csv(rows).encode())
    emit(rows, args.format, lambda console: to_text(rows, console))
    logger.info("wrote %s", file)
    metrics = {f"retest_clean_{name}": float(str(rows[-1][name])) for name in ("all_rmse", "all_mae")}
    _log(models, metrics, {"vadtune.retest_clean": {"method": rows[-1]["method"]}}, [file], args)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    from vadtune.core.errors import ConfigError

    masked = ("ratios", "seeds", "missing_mode", "seed", "baselines", "save_predictions")
    given = [f"--{name.replace('_', '-')}" for name in masked if getattr(args, name) is not None]
    if args.clean and given:
        raise ConfigError(f"--clean: hides nothing and takes nothing about masks, got {', '.join(given)}; leave it out")


def _mask_seeds(args: argparse.Namespace) -> list[int]:
    from vadtune.core.errors import ConfigError
    from vadtune.evaluation.mask_options import random_seed

    count = 5 if args.seeds is None else args.seeds
    if count < 1:
        raise ConfigError(f"--seeds: takes a number of masks above 0, got {count}")
    if args.missing_mode != "random":
        if args.seed is not None:
            raise ConfigError("--seed: belongs to --missing-mode random, got --missing-mode fixed; leave one out")
        return list(range(count))
    first = random_seed() if args.seed is None else args.seed
    if not 0 <= first < 2**32:
        raise ConfigError(f"--seed: takes a whole number from 0 to {2**32 - 1}, got {first}")
    return list(range(first, first + count))


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Gives a function that tells what is being done: on one changing line of a terminal, else line by line."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield logger.info
        return
    with console.status("reading the models") as status:
        yield status.update


def _log(
    models: Sequence[Path],
    metrics: Mapping[str, float],
    described: Mapping[str, object],
    files: Sequence[Path],
    args: argparse.Namespace,
) -> None:
    """Adds the retest to the run of the search that the models came from; failing to is not failing the retest."""
    from vadtune.artifacts.model_folder import read_manifest
    from vadtune.ensemble.export import PARENT_RUN
    from vadtune.tracking import connect_existing, log_to_run, tracking_uri

    if args.no_log:
        return
    parents = {read_manifest(model)["provenance"].get(PARENT_RUN) for model in models}
    run_id = parents.pop()
    if parents or run_id is None:
        logger.info("not logged to MLflow: the models are not from one exported search")
        return
    tags = {name: json.dumps(value) for name, value in described.items()}
    try:
        client = connect_existing(tracking_uri(args.tracking_uri))
        log_to_run(client, run_id, metrics=dict(metrics), tags=tags, artifacts=files)
    except Exception as error:  # of many kinds, by store; the results are on disk already
        reason = str(error).splitlines()[0]
        logger.warning("not logged to MLflow: %s", reason)
        return
    logger.info("logged to MLflow run %s", run_id)
