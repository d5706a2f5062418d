"""Train one configuration and print its scores as JSON.

FILE is a trial configuration: a search file in which every parameter has one value, such as config.yaml of an exported
model.

example: vadtune train best/01-*/config.yaml train.epochs=500 --out longer/
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vadtune.cli.arguments import add_data_dir, add_device, add_search_file, check_device, overrides_of
from vadtune.cli.output import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_search_file(parser, "trial configuration, such as config.yaml of an exported model")
    add_data_dir(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder of the model (default: not written)")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, prints the scores, writes the model folder."""
    from vadtune.artifacts.model_folder import save_model
    from vadtune.config import load_trial
    from vadtune.core.files import check_new_folder
    from vadtune.core.shipped import find_search_file
    from vadtune.data import load_dataset
    from vadtune.training.population import Population
    from vadtune.training.scoring import evaluate

    config = load_trial(find_search_file(args.file), overrides_of(args))
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
