"""Commands about single models and exported ensembles."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from vadtune.cli import arguments as shared
from vadtune.cli.arguments import argument, command
from vadtune.cli.output import logger, print_table, progress_line, say
from vadtune.core.errors import ConfigError, DataError
from vadtune.core.files import check_new_folder, new_file, write_atomically
from vadtune.core.processes import start_server
from vadtune.core.shipped import find_search_file


@command(
    *shared.EXPERIMENT,
    shared.ENSEMBLE,
    argument("--trial", metavar="TRIAL", help="only this trial, such as trial-0007 (default: an ensemble)"),
    argument(
        "--refit",
        default="train+validation",
        metavar="ROWS",
        help="rows to train the members on again: train, train+validation, all-observed (also the observed cells of "
        "the test rows; only the cells that the mask hid can test it then), or none (default: train+validation)",
    ),
    argument(
        "--no-regression",
        action="store_true",
        help="leave out the kernel regression, which is added if it lowers the held-out error (default: off)",
    ),
    shared.DEVICE,
    argument("--out", type=Path, default=Path("best"), help="new or empty folder (default: best)"),
    argument("--overwrite", action="store_true", help="replace an earlier export in --out (default: off)"),
)
def export(args: argparse.Namespace) -> None:
    """Write an ensemble of a search's models as one folder.

    Chooses models and weights on held-out cells, trains the models again on more rows, and writes a folder that retest,
    plot and impute use as one model: ensemble.json, regression.safetensors (if a regression is part of the ensemble),
    and for each model its configuration (which `vadtune train` accepts), weights, latents, scaler, metrics, package
    versions and a manifest with the hash of each file.

    example: vadtune export digits --out best/
    example: vadtune export digits --ensemble top:3 --refit all-observed --out best/
    example: vadtune export digits --trial trial-0007 --refit none --out one/
    """
    if args.refit != "none" and args.device == "cpu":
        start_server()  # before this process imports large libraries
    from vadtune.ensemble.export import check_out, check_refit, export_best
    from vadtune.ensemble.selection import parse_ensemble
    from vadtune.tracking.commands import next_command
    from vadtune.tracking.table_rows import main_columns, trial_rows

    parse_ensemble(args.ensemble)  # before connecting to a store
    if args.trial is not None and args.ensemble != "greedy":
        raise ConfigError(f"--trial: takes one trial and no ensemble, got --ensemble {args.ensemble}; leave one out")
    check_refit(args.refit)
    shared.check_device(args.device)
    check_out(args.out, overwrite=args.overwrite)
    search, trials, metric = shared.find_search(args)
    if args.trial is not None:
        trials = [shared.find_trial(trials, args.trial, metric)]
    exported = export_best(
        search,
        trials,
        metric=metric,
        out=args.out,
        ensemble=args.ensemble if args.trial is None else "best",
        refit=args.refit,
        regress=not args.no_regression,
        device=args.device,
        overwrite=args.overwrite,
        progress=logger.info,
    )
    by_trial = {row["trial"]: row for row in main_columns(trial_rows(exported.trials, metric), metric)}
    rows = [
        {
            "folder": str(args.out / member.folder),
            "weight": f"{member.weight:.3f}",
            "held_out_rmse": member.rmse,
            **{name: value for name, value in by_trial[member.trial].items() if name not in ("rank", metric)},
        }
        for member in exported.ensemble.members
    ]
    print_table(rows)
    say(f"ensemble: {exported.ensemble.line()}")
    logger.info("next: %s", next_command(f"retest {shlex.quote(str(args.out))}", uri=search.tracking_uri))


@command(
    shared.search_file("trial configuration, such as config.yaml of an exported model"),
    shared.DATA_DIR,
    argument("--out", type=Path, metavar="DIR", help="new folder of the model (default: not written)"),
    shared.DEVICE,
)
def train(args: argparse.Namespace) -> None:
    """Train one configuration and print its scores as JSON.

    FILE is a trial configuration: a search file in which every parameter has one value, such as config.yaml of an
    exported model.

    example: vadtune train best/01-*/config.yaml train.epochs=500 --out longer/
    """
    from vadtune.artifacts.model_folder import save_model
    from vadtune.config import load_trial
    from vadtune.data import load_dataset
    from vadtune.training.population import Population
    from vadtune.training.scoring import evaluate

    config = load_trial(find_search_file(args.file), shared.overrides_of(args))
    if args.out is not None:
        check_new_folder(args.out)
    shared.check_device(args.device)
    dataset = load_dataset(config.data)
    population = Population([config], dataset.train, args.device)
    tenth = max(1, config.train.epochs // 10)
    while population.epoch < config.train.epochs:
        population.train_until(min(population.epoch + tenth, config.train.epochs))
        loss = population.members[0].metrics["train_loss"]
        logger.info("epoch %d of %d: train_loss %.4f", population.epoch, config.train.epochs, loss)
    scores = evaluate(population, dataset.search_data)[0].scores
    if args.out is not None:
        (model,) = population.models()
        save_model(args.out, model.with_metadata(dataset.scaler, dataset.feature_names), metrics=scores)
        logger.info("wrote %s; retest it: vadtune retest %s", args.out, shlex.quote(str(args.out)))
    say(json.dumps(scores, indent=1))


@command(
    shared.MODEL_FOLDER,
    argument("table", type=Path, metavar="TABLE", help="rows with the columns of the training data"),
    argument("--out", type=Path, required=True, help="filled table, with the ending of TABLE (required)"),
    argument("--na-values", help="texts that also mean missing, such as -999,NA (default: as in training)"),
)
def impute(args: argparse.Namespace) -> None:
    """Fill the missing cells of a table of new rows.

    Writes the table (CSV, TSV, Parquet, npy, npz) with its missing cells filled by the weighted mean of the models, in
    the table's units. Columns are matched by name and keep their order; observed cells stay byte for byte the same.
    Empty cells and NaN are missing.

    example: vadtune impute best/ table.csv --out filled.csv
    example: vadtune impute best/ table.csv --na-values=-999,NA --out filled.csv
    """
    from vadtune.tables import Cells, check_columns, open_table

    _check_table_out(args.table, args.out)
    from vadtune.ensemble.model_average import ModelAverage, StreamedFill

    models = ModelAverage.load(args.folder)
    na_values = [*models.na_values, *(args.na_values.split(",") if args.na_values else ())]
    table = open_table(args.table)
    columns = check_columns(args.table, table, models.feature_names)
    with progress_line(f"filling {args.table}") as show:
        stream = StreamedFill(models, rows=table.rows, progress=show)
        try:
            with new_file(args.out) as out:
                table.copy_filled(out, columns, Cells(na_values), stream.fill)
        except DataError as error:
            raise DataError(f"{args.table}: {error}") from error
    if stream.empty_rows:
        logger.warning("%d rows have no observed cell: filled from the prior mean alone", stream.empty_rows)
    count = len(models.models)
    by = "one model" if count == 1 else f"the mean of {count} models"
    by += "" if models.regression is None else " and a regression"
    logger.info("filled %d of %d cells by %s: %s", stream.filled_cells, stream.cells, by, args.out)


def _check_table_out(table: Path, out: Path) -> None:
    if out.exists() and table.exists() and out.samefile(table):
        raise ConfigError(f"--out: takes another file than the table that is read, got {out}; pass a new path")
    if out.suffix != table.suffix and not out.is_dir():
        raise ConfigError(f"--out: takes a file of the table's kind, '{table.suffix}', got {out}; change the ending")
    shared.check_out_file(out)


@command(
    shared.MODEL_FOLDER,
    argument("--out", type=Path, default=Path("plot.png"), help="a .png file (default: plot.png)"),
    argument("--ratio", type=float, default=0.5, help="fraction of cells to hide (default: 0.5)"),
    argument("--seed", type=int, default=0, help="seed of the mask and the rows (default: 0)"),
    argument("--rows", type=int, metavar="N", help="number of test rows (default: 8 images; 2000 of a table)"),
)
def plot(args: argparse.Namespace) -> None:
    """Plot what an exported model imputes for test rows.

    Images: truth, input (missing pixels in a separate colour), imputation and absolute error, one below the other.
    Tables: imputed against true values of the missing cells, one panel per column. Prints the errors in the units of
    the source.

    example: vadtune plot best/ --ratio 0.5 --out plot.png
    """
    shared.check_ratio(args.ratio)
    shared.check_seed(args.seed)
    shared.check_out_file(args.out, ".png")
    from vadtune.evaluation.previews import make_preview
    from vadtune.reports.preview_figure import preview_plot

    preview = make_preview(args.folder, ratio=args.ratio, seed=args.seed, rows=args.rows)
    write_atomically(args.out, preview_plot(preview))
    print_table(preview.summary())
    logger.info("wrote %s", args.out)
