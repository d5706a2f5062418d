"""``vadtune train CONFIG``: train one configuration."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from vadtune.cli._shared import add_data_argument, add_overrides, check_device, with_data_dir

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "train",
        parents=parents,
        help="train one configuration",
        description="Train one trial configuration and print its scores as JSON.",
        epilog="example: vadtune train best/01-*/config.yaml train.epochs=500 --out longer/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="CONFIG", help="a trial configuration, such as export writes")
    add_overrides(parser)
    add_data_argument(parser)
    parser.add_argument("--out", type=Path, help="write the trained model to this new folder")
    parser.add_argument("--device", default="cpu", help="where to train: cpu, cuda, cuda:1 (default: cpu)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains, prints the scores, writes the model folder."""
    from vadtune.artifacts.model_folder import check_new_folder, save_model
    from vadtune.config import load_trial
    from vadtune.data import load_dataset
    from vadtune.training.population import Population
    from vadtune.training.scoring import evaluate

    config = load_trial(args.file, with_data_dir(args))
    if args.out is not None:
        check_new_folder(args.out)
    check_device(args.device)
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
        logger.info("wrote %s; retest it: vadtune retest %s", args.out, args.out)
    print(json.dumps(scores, indent=1))
    return 0
