"""Translation of the published VAD code's configurations (arXiv 1903.00840) to trial configurations.

That code reads sizes, learning rates and initialisations from a JSON file (``config_0.json``) and all else from flags.
Here both are one mapping with that code's names, so that the ``args.json`` of a run can be read as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vadtune.config import TrialConfig, parse_trial, unflatten
from vadtune.core.errors import ConfigError, unknown_name
from vadtune.core.reading import read_bounded
from vadtune.core.text import one_line
from vadtune.data import load_dataset

FLAG_DEFAULTS: dict[str, Any] = {
    **{"model": "ae", "kl": False, "ratio_kl": 1.0, "log_var": -14.0, "reduce": False},
    **{"batch_size": 32, "n_train_epochs": 50, "n_test_epochs": 50},
}
POSTERIORS = {"ae": "none", "vae": "fixed", "vae_free": "learned"}

_RENAMED = {
    "n_latent_params": "model.latent",
    "n_hidden": "model.hidden",
    "n_hidden_layers": "model.layers",
    "net_lr": "train.net_lr",
    "latent_param_lr": "train.latent_lr",
    "activation_fn": "model.activation",
    "latent_param_init": "train.latent_init",
    "n_train_epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "test_latent_param_lr": "infer.lr",
    "test_latent_param_init": "infer.start",
    "n_test_epochs": "infer.steps",  # a test epoch updates each row once
}
_REQUIRED = ("n_latent_params", "n_hidden", "n_hidden_layers", "net_lr", "latent_param_lr")
_CONVERTED = ("model", "kl", "ratio_kl", "log_var", "reduce", "masked", "use_adam", "layer_norm", "dropout", "dataset")
_IGNORED = (
    *("action", "config_folder", "config_num", "cuda", "cuda_device", "device", "debug", "dataset_path"),
    *("missing_mode", "output_size", "test_batch_size"),
)


class Imported(NamedTuple):
    """A translated configuration.

    Attributes:
        config: The trial configuration.
        notes: A line for each setting that was converted or left out.
    """

    config: TrialConfig
    notes: list[str]


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a JSON file of the published code.

    Raises:
        ConfigError: It cannot be read, is not a JSON object, or lacks a setting that every such file has.
    """
    try:
        settings = json.loads(read_bounded(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name an existing file") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); name a config_N.json of the published code") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: needs an object of settings, got {type(settings).__name__}; name a config_N.json")
    missing = [key for key in _REQUIRED if key not in settings]
    if missing:
        raise ConfigError(f"{path}: lacks {', '.join(missing)}, which the published code needs; name a config_N.json")
    return settings


def import_settings(
    settings: Mapping[str, Any],
    *,
    name: str,
    source: str | None = None,
    ratio: float | None = None,
    overrides: Sequence[str] = (),
) -> Imported:
    """Translates settings of the published code to a trial configuration.

    That code runs one dense Adam over all latent rows, whose moments keep moving a row in minibatches without it. For a
    row with gradient g in one of the B minibatches of an epoch, the first moments sum to g over the epoch and the root
    of the second moment is about g / √B, so the row moves by √B times the learning rate. Here Adam updates only the
    rows of a minibatch, by the learning rate. Hence ``latent_lr`` = √B · ``latent_param_lr``; SGD has no moments.

    That code's loss is the mean squared error over observed cells plus ``ratio_kl`` times a row's KL divergence. Here
    the squared error is summed, so ``kl_weight`` = ``ratio_kl`` · d · (1 − missing ratio), the observed cells of a row.

    Args:
        settings: Settings from the JSON file and from flags, with the published code's names.
        name: Name of the trial configuration.
        source: The data source; None for the ``dataset`` of the settings.
        ratio: Missing ratio of validation and test rows; None for ``masked``, the missing ratio of train rows.
        overrides: ``key.path=value`` texts that replace translated values.

    Raises:
        ConfigError: A setting is not valid, or has no counterpart here.
        DataError: The source cannot be read; its size is needed to convert ``latent_lr`` and ``kl_weight``.
    """
    settings = {**FLAG_DEFAULTS, **{key: value for key, value in settings.items() if value is not None}}
    source = source or settings.get("dataset")
    if source is None:
        raise ConfigError("--source: is needed, a configuration of the published code does not name its data; add it")
    values: dict[str, Any] = {"name": name, "data.source": source, **_missing(settings.get("masked"), ratio)}
    values |= {key: settings[published] for published, key in _RENAMED.items() if published in settings}
    values |= _posterior(settings) | _training(settings)
    notes = [f"{key}: no effect here, left out" for key in settings if key in _IGNORED]
    known = {*_RENAMED, *_CONVERTED, *_IGNORED}
    notes += [
        f"{key}: unknown, {one_line(repr(settings[key]), 100)} was left out" for key in settings if key not in known
    ]
    values["train.kl_weight"] = 0.0
    config = parse_trial(unflatten(values), overrides)  # before the data is read, so that mistakes are reported at once
    n, d = load_dataset(config.data).train.x.shape
    if config.train.optimiser == "adam":
        batches = math.ceil(n / config.train.batch_size)
        values["train.latent_lr"] = settings["latent_param_lr"] * math.sqrt(batches)
        notes.append(
            f"latent_lr = latent_param_lr {settings['latent_param_lr']:g} x root of {batches} minibatches: there each "
            "moves all rows, by their momentum"
        )
    if settings["kl"]:
        share = 1 - _train_ratio(settings.get("masked"))
        values["train.kl_weight"] = settings["ratio_kl"] * d * share
        notes.append(f"kl_weight = ratio_kl {settings['ratio_kl']:g} x {d} columns x {share:g} observed")
    return Imported(parse_trial(unflatten(values), overrides), notes)


def _missing(masked: object, ratio: float | None) -> dict[str, Any]:
    """Returns the data section: missing ratio ``masked`` for train rows, ``ratio`` for validation and test rows."""
    train = _train_ratio(masked)
    if ratio is None and not train:
        raise ConfigError("--ratio: is needed, for masked is null: the published code trained on complete rows; add it")
    if ratio is None or ratio == train:
        return {"data.missing.ratio": train}
    return {"data.missing.ratio": ratio, "data.train_missing": {"ratio": train} if train else "none"}


def _train_ratio(masked: object) -> float:
    if masked is None:
        return 0.0
    if isinstance(masked, bool) or not isinstance(masked, (int, float)) or not 0 <= masked < 1:
        raise ConfigError(f"masked: takes a share of cells from 0 to below 1 or null, got {masked!r}; correct it")
    return float(masked)


def _posterior(settings: Mapping[str, Any]) -> dict[str, Any]:
    model, kl = settings["model"], settings["kl"]
    if model not in POSTERIORS:
        raise ConfigError(f"--model: {unknown_name('model', model, POSTERIORS)}")
    if kl and model == "ae":
        raise ConfigError("--kl: belongs to the models vae and vae_free, got ae, which has no variance; leave it out")
    if isinstance(settings["ratio_kl"], bool) or not isinstance(settings["ratio_kl"], (int, float)):
        raise ConfigError(f"--ratio_kl: takes a number, got {settings['ratio_kl']!r}; correct it")
    values: dict[str, Any] = {"model.family": "vad", "model.posterior": POSTERIORS[model]}
    if model == "vae":
        values["model.log_var"] = settings["log_var"]
    return values


def _training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns optimiser, learning rate schedule and regularisation."""
    values: dict[str, Any] = {
        "train.weight_decay": 0.0,
        "train.optimiser": "adam" if settings.get("use_adam", True) else "sgd",
        "train.schedule": "plateau" if settings["reduce"] else "constant",
    }
    return values | {f"model.{key}": settings[key] for key in ("layer_norm", "dropout") if settings.get(key)}
