"""The sections of a search file, once every domain is replaced by a value: a trial configuration.

Defaults are what a file that is silent gets. Names that a registry elsewhere implements are listed here as plain
tuples, so that checking a file needs neither torch nor scikit-learn; a test holds them equal to the registries.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from vadtune.domains import as_number
from vadtune.errors import unknown_name

SOURCES = ("digits", "breast_cancer", "wine", "diabetes", "iris")
MECHANISMS = ("mcar",)
FAMILIES = ("vad", "vae")
ACTIVATIONS = ("relu", "tanh")
POSTERIORS = ("learned", "fixed", "none")
LATENT_INITS = ("pca", "normal", "zeros")
SCHEDULES = ("cosine", "constant")
SAMPLERS = ("tpe", "random", "grid", "cmaes")
SCHEDULERS = ("asha", "hyperband", "median", "none")

REPORTED_METRICS = {
    "val_missing_rmse": "root mean squared error over held-out observed validation cells, in the scaler's units",
    "val_missing_mae": "mean absolute error over held-out observed validation cells, in the scaler's units",
    "val_observed_rmse": "root mean squared error over the validation cells inference was given, in the scaler's units",
    "train_loss": "the objective per observed train cell",
    "train_reconstruction": "squared error per observed train cell, one draw per row, in the scaler's units",
    "train_kl": "KL divergence in nats per train row",
    "train_seconds": "time spent training",
    "inference_seconds": "time spent inferring the validation rows",
}
SELECTABLE_METRICS = ("val_missing_rmse", "val_missing_mae")
"""Only held-out cells may select: errors on cells a model was given reward memorising them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("takes a number")
    return as_number(value)


def _one_of(kind: str, valid: tuple[str, ...]) -> BeforeValidator:
    def check(value: object) -> object:
        if value not in valid:
            raise ValueError(unknown_name(kind, value, valid))
        return value

    return BeforeValidator(check)


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MissingConfig(Section):
    """Which cells are made missing."""

    mechanism: Annotated[str, _one_of("mechanism", MECHANISMS)] = "mcar"
    ratio: Annotated[Real, Field(gt=0, lt=1, description="share of cells missing")] = 0.5
    seed: Seed = 0


class HoldoutConfig(Section):
    """Which observed validation cells are hidden to be scored."""

    fraction: Annotated[Real, Field(gt=0, lt=1)] = 0.25
    repeats: Annotated[Whole, Field(ge=1)] = 3


class DataConfig(Section):
    """Where values come from and which are missing."""

    source: Annotated[str, _one_of("source", SOURCES)]
    missing: MissingConfig = MissingConfig()
    holdout: HoldoutConfig = HoldoutConfig()


class ModelConfig(Section):
    """Family, sizes and posterior of a model."""

    family: Annotated[Literal["vad", "vae"], _one_of("family", FAMILIES)] = "vad"
    latent: Annotated[Whole, Field(ge=1)] = 16
    layers: Annotated[Whole, Field(ge=0, description="hidden layers; 0 is a linear decoder")] = 1
    hidden: Annotated[Whole, Field(ge=1)] = 128
    activation: Annotated[str, _one_of("activation", ACTIVATIONS)] = "relu"
    posterior: Annotated[Literal["learned", "fixed", "none"], _one_of("posterior", POSTERIORS)] = "learned"
    log_var: Annotated[Real, Field(ge=-50, le=10, description="log variance of a fixed posterior")] = -2.0


class TrainConfig(Section):
    """How the decoder and the posteriors of the train rows are fitted.

    ``kl_weight`` multiplies the KL divergence where the squared error is summed over observed cells; the ``ratio_kl``
    of the published VAD code is this divided by the observed cells per row. 0 drops the prior.
    """

    epochs: Annotated[Whole, Field(ge=1)] = 250
    batch_size: Annotated[Whole, Field(ge=1)] = 128
    kl_weight: Annotated[Real, Field(ge=0)] = 0.1
    net_lr: Annotated[Real, Field(gt=0)] = 2e-3
    latent_lr: Annotated[Real, Field(gt=0)] = 0.1
    weight_decay: Annotated[Real, Field(ge=0)] = 0.01
    latent_init: Annotated[str, _one_of("latent_init", LATENT_INITS)] = "pca"
    schedule: Annotated[str, _one_of("schedule", SCHEDULES)] = "cosine"
    seed: Seed = 0


class InferConfig(Section):
    """How the posterior of new rows is fitted. A VAE starts from its encoder; with 0 steps it stays there."""

    steps: Annotated[Whole, Field(ge=0)] = 100
    lr: Annotated[Real, Field(gt=0)] = 0.15
    start: Annotated[str, _one_of("start", ("nearest", "zeros"))] = "nearest"
    prior: Annotated[str, _one_of("prior", ("standard", "train"))] = "standard"
    kl_weight: Annotated[Real, Field(ge=0)] | None = None  # None: as in training


class SearchConfig(Section):
    """How configurations are proposed, stopped and scored."""

    samples: Annotated[Whole, Field(ge=1)] | None = None  # None: 64, or the whole grid
    sampler: Annotated[str, _one_of("sampler", SAMPLERS)] = "tpe"
    scheduler: Annotated[str, _one_of("scheduler", SCHEDULERS)] = "asha"
    grace_epochs: Annotated[Whole, Field(ge=1)] | None = None  # None: a ninth of the epochs
    reduction_factor: Annotated[Whole, Field(ge=2)] = 3
    report: Any = "rungs"  # or a number of epochs: a denser curve
    metric: str = "val_missing_rmse"
    seed: Seed = 0
    time_budget: Any = None
    trial_timeout: Any = None  # the longest time between two reports of a trial
    cpus_per_trial: Annotated[Real, Field(gt=0)] = 1
    gpus_per_trial: Annotated[Real, Field(ge=0)] = 0
    accelerator_type: str | None = None  # such as A10G, on a cluster that has several
    initial: list[dict[str, Any]] = []

    @field_validator("metric")
    @classmethod
    def _metric_selects(cls, metric: str) -> str:
        if metric not in REPORTED_METRICS:
            raise ValueError(f"nobody reports it: {unknown_name('metric', metric, SELECTABLE_METRICS)}")
        if metric not in SELECTABLE_METRICS:
            raise ValueError(
                f"a search selects on held-out cells only ({', '.join(SELECTABLE_METRICS)}); '{metric}' is "
                f"{REPORTED_METRICS[metric]}"
            )
        return metric

    @field_validator("report")
    @classmethod
    def _report_is_rungs_or_epochs(cls, value: object) -> object:
        number = as_number(value)
        if value != "rungs" and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError("takes 'rungs' or a number of epochs from 1")
        return number

    @field_validator("time_budget", "trial_timeout")
    @classmethod
    def _times_are_durations(cls, value: object) -> object:
        if value is not None and _seconds(value) is None:
            raise ValueError("takes a duration above 0 such as 90s, 30m, 2h or 1d")
        return value

    @property
    def trial_timeout_s(self) -> float | None:
        """The trial timeout in seconds; None without one."""
        return None if self.trial_timeout is None else _seconds(self.trial_timeout)

    @property
    def time_budget_s(self) -> float | None:
        """The time budget in seconds; None without one."""
        return None if self.time_budget is None else _seconds(self.time_budget)


class TrialConfig(Section):
    """One configuration: a search file with every domain replaced by a value."""

    name: str
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    infer: InferConfig = InferConfig()

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("takes letters, digits, '.', '_' and '-', starting with a letter or digit")
        if name == "Default":
            raise ValueError("takes a name other than that of MLflow's own experiment")
        return name

    def to_dict(self) -> dict[str, Any]:
        """Returns the sections as plain values, without the parameters that do not exist in this configuration."""
        values = self.model_dump()
        if self.model.layers == 0:
            del values["model"]["hidden"], values["model"]["activation"]
        if self.model.posterior != "fixed":
            del values["model"]["log_var"]
        if self.model.family == "vae":
            del values["train"]["latent_lr"], values["train"]["latent_init"], values["infer"]["start"]
        if self.infer.kl_weight is None:
            del values["infer"]["kl_weight"]
        return values

    def to_yaml(self) -> str:
        """Returns the YAML that ``vadtune train`` accepts; what it loads is equal in every parameter that exists."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def flat(self) -> dict[str, Any]:
        """Returns ``to_dict`` under dotted keys, such as ``model.latent``."""
        return flatten(self.to_dict())


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns a mapping with dotted keys as nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested


def _seconds(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if value > 0 and math.isfinite(value) else None
    match = _DURATION.fullmatch(str(value).strip())
    seconds = float(match[1]) * _SECONDS[match[2] or "s"] if match else 0.0
    return seconds or None
