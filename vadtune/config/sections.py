"""The sections ``model``, ``train``, ``infer`` and ``search`` of a search file, and trial configurations.

Names that registries of other packages implement are listed here as plain tuples, so that checking a file does not
import PyTorch; a test compares them with the registries.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from vadtune.config.existence import absent, is_closed_form
from vadtune.core.errors import unknown_name
from vadtune.core.schema import Real, Section, Seed, Whole, as_number, one_of, word_or_count
from vadtune.data import AnyDataConfig

FAMILIES = ("vad", "vae")
ACTIVATIONS = ("relu", "tanh", "gelu", "silu", "linear")
HEADS = ("plain", "projection")
NOISES = ("fixed", "learned")
POSTERIORS = ("learned", "fixed", "none")
LATENT_INITS = ("pca", "pca_iterated", "normal", "zeros")
OPTIMISERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "constant", "plateau")
PRECISIONS = ("float32", "bf16")
COMPILE = ("auto", "on", "off")
STARTS = ("auto", "nearest", "linear", "train", "normal", "zeros")
SAMPLERS = ("tpe", "random", "grid", "cmaes")
SCHEDULERS = ("asha", "hyperband", "median", "none")
ORDERS = ("logical", "arrival")

REPORTED_METRICS = {
    "val_missing_rmse": "root mean squared error over held-out observed validation cells, in the scaler's units",
    "val_missing_mae": "mean absolute error over held-out observed validation cells, in the scaler's units",
    "val_observed_rmse": "root mean squared error over the validation cells that inference used, in the scaler's units",
    "train_loss": "the objective per observed train cell",
    "train_reconstruction": "squared error per observed train cell, one draw per row, in the scaler's units",
    "train_kl": "KL divergence in nats per train row",
    "train_seconds": "time spent training",
    "inference_seconds": "time spent inferring the validation rows",
}
SELECTABLE_METRICS = ("val_missing_rmse", "val_missing_mae")
"""Metrics that may select configurations: errors on cells a model has seen would reward memorising them."""

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|m|h|d)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 10_000 * 86400.0  # more than any search, and less than clocks can wait

REFITS = ("none", "train", "train+validation", "all-observed")
"""The rows that exported models are refitted on; all-observed includes the observed cells of the test rows."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MOST_WIDTH = 2**16  # latents, and units of a layer
_MOST_STEPS = 10**6  # epochs, inference steps and trials


class ModelConfig(Section):
    """The section ``model``: family, network, output head, noise and posterior."""

    family: Annotated[Literal["vad", "vae"], one_of("family", FAMILIES)] = "vad"
    latent: Annotated[Whole, Field(ge=1, le=_MOST_WIDTH)] = 16
    layers: Annotated[Whole, Field(ge=0, le=100, description="hidden layers; 0 is a linear decoder")] = 1
    hidden: Annotated[Whole, Field(ge=1, le=_MOST_WIDTH)] = 128
    activation: Annotated[str, one_of("activation", ACTIVATIONS)] = "relu"
    layer_norm: bool = False  # before every activation
    dropout: Annotated[Real, Field(ge=0, lt=1, description="share of the decoder's hidden units")] = 0.0
    head: Annotated[str, one_of("head", HEADS)] = "plain"  # projection: columns are x, y of points in space
    skip: bool = False  # a linear map in parallel with the decoder's hidden layers
    noise: Annotated[Literal["fixed", "learned"], one_of("noise", NOISES)] = (
        "fixed"  # learned: one variance per feature
    )
    posterior: Annotated[Literal["learned", "fixed", "none"], one_of("posterior", POSTERIORS)] = "learned"
    log_var: Annotated[Real, Field(ge=-50, le=10, description="log variance of a fixed posterior")] = -2.0

    @field_validator("skip")
    @classmethod
    def _skip_needs_plain_head(cls, skip: bool, info: ValidationInfo) -> bool:
        head = info.data.get("head", "plain")
        if skip and head != "plain":
            raise ValueError(f"needs head plain, got head {head}; leave one of them out")
        return skip

    @property
    def closed_form(self) -> bool:
        """See ``is_closed_form``."""
        return is_closed_form(self.family, self.layers, self.head, self.posterior)


class TrainConfig(Section):
    """The section ``train``: how the decoder and the posteriors of the train rows are fitted.

    ``kl_weight`` multiplies the KL divergence, with the squared error summed over observed cells; the ``ratio_kl`` of
    the published VAD code is ``kl_weight`` divided by the observed cells per row. 0 drops the prior.

    A linear decoder with learned posteriors is fitted in closed form (models/linear_em.py): an epoch is one iteration
    over all rows, and options of batches and gradients do not apply. Its ``weight_decay`` is a ridge penalty on the
    weights, in units of the observed cells of an average column.
    """

    epochs: Annotated[Whole, Field(ge=1, le=_MOST_STEPS)] = 250
    batch_size: Annotated[Whole, Field(ge=1, le=10**9)] = 128
    kl_weight: Annotated[Real, Field(ge=0)] = 0.1
    net_lr: Annotated[Real, Field(gt=0)] = 2e-3
    latent_lr: Annotated[Real, Field(gt=0)] = 0.1
    weight_decay: Annotated[Real, Field(ge=0)] = 0.01
    latent_init: Annotated[str, one_of("latent_init", LATENT_INITS)] = "pca"
    optimiser: Annotated[str, one_of("optimiser", OPTIMISERS)] = "adamw"
    schedule: Annotated[str, one_of("schedule", SCHEDULES)] = "cosine"
    precision: Annotated[str, one_of("precision", PRECISIONS)] = (
        "float32"  # of matrix products; parameters stay float32
    )
    compile: Annotated[str, one_of("compile", COMPILE)] = "auto"
    seed: Seed = 0


class InferConfig(Section):
    """The section ``infer``: how posteriors of new rows are fitted. A VAE starts from its encoder's output."""

    steps: Annotated[Whole, Field(ge=0, le=_MOST_STEPS)] = 100
    lr: Annotated[Real, Field(gt=0)] = 0.15
    start: Annotated[str, one_of("start", STARTS)] = "auto"
    prior: Annotated[str, one_of("prior", ("standard", "train"))] = "standard"
    kl_weight: Annotated[Real, Field(ge=0)] | None = None  # None: as in training


def _seconds(value: object) -> float | None:
    """Returns a duration in seconds; None if it is no duration above 0 and at most 10,000 days."""
    seconds = 0.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value
    elif match := _DURATION.fullmatch(str(value).strip()):
        seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    return float(seconds) if 0 < seconds <= _LONGEST else None


def _check_duration(value: object) -> object:
    if value is not None and _seconds(value) is None:
        raise ValueError("takes a duration above 0 such as 90s, 30m, 2h or 1d")
    return value


def _check_grace(value: object) -> object:
    number = as_number(value)
    if number is None or (isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= _MOST_STEPS):
        return number
    if isinstance(number, float) and 0 < number < 1:
        return number
    raise ValueError("takes a number of epochs from 1, or a share of train.epochs above 0 and below 1")


_Duration = Annotated[Any, AfterValidator(_check_duration)]


class SearchConfig(Section):
    """The section ``search``: how configurations are proposed, stopped and scored."""

    samples: Annotated[Whole, Field(ge=1, le=_MOST_STEPS)] | None = None  # None: until a budget ends, the grid, or 64
    sampler: Annotated[str, one_of("sampler", SAMPLERS)] = "tpe"
    scheduler: Annotated[str, one_of("scheduler", SCHEDULERS)] = "asha"
    grace_epochs: Annotated[Any, AfterValidator(_check_grace)] = None  # or a share of the epochs; None: a ninth
    reduction_factor: Annotated[Whole, Field(ge=2, le=_MOST_STEPS)] = 3
    report: Annotated[Any, word_or_count("rungs", "epochs")] = "rungs"  # a number: report every so many epochs
    metric: str = "val_missing_rmse"
    seed: Seed = 0
    time_budget: _Duration = None
    trial_timeout: _Duration = None  # the longest time between two reports of a trial
    cpus_per_trial: Annotated[Real, Field(gt=0)] = 1
    gpus_per_trial: Annotated[Real, Field(ge=0)] = 0
    order: Annotated[str, one_of("order", ORDERS)] | None = None  # None: logical for unpacked trials of one machine
    concurrency: Annotated[Whole, Field(ge=1)] | None = None  # trials at once in logical order; None: as many as fit
    gpu_hours: Annotated[Real, Field(gt=0)] | None = None  # budget: GPUs held by the search, times hours
    pack: Annotated[Any, word_or_count("auto", "trials")] = "auto"  # most trials trained together; auto: 1 on a CPU
    accelerator_type: str | None = None  # such as A10G, on a cluster that has several
    initial: list[dict[str, Any]] = Field([])

    @field_validator("metric")
    @classmethod
    def _metric_selects(cls, metric: str) -> str:
        if metric not in REPORTED_METRICS:
            raise ValueError(f"is not reported: {unknown_name('metric', metric, SELECTABLE_METRICS)}")
        if metric not in SELECTABLE_METRICS:
            raise ValueError(
                f"a search selects on held-out cells only ({', '.join(SELECTABLE_METRICS)}); '{metric}' is "
                f"{REPORTED_METRICS[metric]}"
            )
        return metric

    @field_validator("initial")
    @classmethod
    def _initial_holds_numbers(cls, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: as_number(value) for key, value in point.items()} for point in points]

    @field_validator("gpu_hours")
    @classmethod
    def _gpu_hours_need_gpus(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("gpus_per_trial") == 0:
            raise ValueError("is a budget for GPUs, and trials use none; set search.gpus_per_trial, or leave it out")
        return value

    def grace(self, epochs: int) -> int:
        """Returns the epochs before a trial may be stopped: by default a ninth, where ranks are close to final ones."""
        if self.grace_epochs is None:
            return math.ceil(epochs / 9)
        return self.grace_epochs if isinstance(self.grace_epochs, int) else max(1, round(self.grace_epochs * epochs))

    @property
    def trial_timeout_s(self) -> float | None:
        """The trial timeout in seconds, or None."""
        return None if self.trial_timeout is None else _seconds(self.trial_timeout)

    @property
    def time_budget_s(self) -> float | None:
        """The time budget in seconds, or None."""
        return None if self.time_budget is None else _seconds(self.time_budget)


class TrialConfig(Section):
    """A trial configuration: a search file with every domain replaced by a value."""

    name: str
    data: AnyDataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    infer: InferConfig = InferConfig()

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("takes letters, digits, '.', '_' and '-', starting with a letter or digit")
        if name == "Default":
            raise ValueError("is the name of MLflow's default experiment; choose another")
        return name

    def to_dict(self) -> dict[str, Any]:
        """Returns the sections as plain values, without parameters that do not apply to this configuration."""
        values = self.model_dump()
        for key in absent(flatten(values)):
            section, _, name = key.partition(".")
            del values[section][name]
        if self.infer.kl_weight is None:
            del values["infer"]["kl_weight"]
        return values

    def to_yaml(self) -> str:
        """Returns the configuration as YAML, which ``vadtune train`` accepts; it has every parameter that applies."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def flat(self) -> dict[str, Any]:
        """Returns ``to_dict`` under dotted keys, such as ``model.latent``."""
        return flatten(self.to_dict())


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Converts nested mappings to one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Converts a mapping with dotted keys to nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested
