"""The sections of a search file, once every domain is replaced by a value: a trial configuration.

Defaults are what a file that is silent gets. Names that a registry elsewhere implements are listed here as plain
tuples, so that checking a file needs neither torch nor scikit-learn; a test holds them equal to the registries.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from vadtune.config.domains import as_number
from vadtune.core.errors import unknown_name

SOURCES = (
    *("digits", "breast_cancer", "wine", "diabetes", "iris", "file", "synthetic"),
    *("mnist", "fashion_mnist", "sfm", "artificial", "mosi", "mosei"),
)
SOURCE_OPTIONS = {
    "file": ("path", "columns", "na_values", "image", "point_dims"),
    "synthetic": ("rows", "width", "latent", "depth", "noise", "seed"),
    "mnist": ("path", "data_dir"),
    "fashion_mnist": ("path", "data_dir"),
    **dict.fromkeys(("sfm", "artificial", "mosi", "mosei"), ("path",)),
}
"""The keys of the data section that belong to certain sources; a source that is not here has none."""

PUBLISHED_SOURCES = ("mnist", "fashion_mnist", "sfm", "artificial", "mosi", "mosei")
"""Sources with an HDF5 layout of their own, which holds masks as well."""

_NEED_PATH = ("file", "sfm", "artificial", "mosi", "mosei")
_MAY_HAVE_HOLES = ("file", "sfm")

MECHANISMS = ("mcar", "mar", "mnar", "mnar_quantile", "block", "landmark", "file")
STORED = "file"
"""The mechanism that draws nothing: masks are read from a file of the user's, or from those a source comes with."""

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
STARTS = ("nearest", "train", "normal", "zeros")
SAMPLERS = ("tpe", "random", "grid", "cmaes")
SCHEDULERS = ("asha", "hyperband", "median", "none")
REFITS = ("none", "train", "train+validation", "all-observed")
"""The rows that exported models are trained on anew; all-observed: also on the observed cells of the test rows."""

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


def _text(value: object) -> object:
    """Takes numbers as the texts they are in a table: columns may be named 2019, and holes written -99."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _absolute(path: str) -> str:
    # At once: trials run in working directories of their own, and an exported configuration is read from anywhere.
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise ValueError("starts with the home of a user who is not known here; write the whole path") from error


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Text = Annotated[str, BeforeValidator(_text)]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MissingConfig(Section):
    """Which cells are made missing, beside those that are missing from the start.

    ``none`` stands for a ratio of 0: only the holes there are.
    """

    mechanism: Annotated[str, _one_of("mechanism", MECHANISMS)] = "mcar"
    ratio: Annotated[Real, Field(ge=0, lt=1, description="share of cells missing")] = 0.5
    seed: Seed = 0
    path: FilePath | None = None

    @field_validator("path")
    @classmethod
    def _path_belongs_to_the_mechanism(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and info.data.get("mechanism") != STORED:
            raise ValueError(f"is an option of mechanism '{STORED}', not of the one given; leave it out")
        return path

    @model_serializer(mode="wrap")
    def _without_path(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


def _none_hides_nothing(value: object) -> object:
    return {"mechanism": "mcar", "ratio": 0.0} if value == "none" else value


_Missing = Annotated[MissingConfig, BeforeValidator(_none_hides_nothing)]


class HoldoutConfig(Section):
    """Into how many folds the observed validation cells are dealt; each is hidden once, and scored."""

    folds: Annotated[Whole, Field(ge=2, le=100)] = 4


class DataConfig(Section):
    """Where values come from and which are missing.

    ``missing`` is about all rows; ``train_missing`` about the train rows alone, where these differ: ``none`` trains on
    complete rows and still validates and tests on rows with holes. What it leaves out is as in ``missing``.
    """

    source: Annotated[str, _one_of("source", SOURCES)]
    # Of certain sources only: SOURCE_OPTIONS
    path: FilePath | None = Field(None, validate_default=True)
    columns: Annotated[list[Text], Field(min_length=1)] | None = None  # None: all
    na_values: list[Text] | None = None  # what stands for a hole, beside nothing and NaN
    image: Annotated[list[Annotated[Whole, Field(ge=1)]], Field(min_length=2, max_length=2)] | None = None
    point_dims: Annotated[Whole, Field(ge=1, description="columns of a point")] | None = None
    data_dir: FilePath | None = None  # None: ~/.cache/vadtune
    rows: Annotated[Whole, Field(ge=10)] = 1000
    width: Annotated[Whole, Field(ge=1)] = 20
    latent: Annotated[Whole, Field(ge=1)] = 2
    depth: Annotated[Whole, Field(ge=0)] = 2
    noise: Annotated[Real, Field(ge=0)] = 0.05
    seed: Seed = 0

    missing: _Missing = MissingConfig()
    train_missing: _Missing | None = None  # None: as in missing
    holdout: HoldoutConfig = HoldoutConfig()

    @field_validator(*sorted({option for options in SOURCE_OPTIONS.values() for option in options}))
    @classmethod
    def _option_belongs_to_the_source(cls, value: Any, info: ValidationInfo) -> Any:
        source, option = info.data.get("source"), info.field_name
        if source is None:
            return value
        if value is None:
            if option == "path" and source in _NEED_PATH:
                raise ValueError(f"is required by source '{source}'; name its file")
            return value
        owners = sorted(name for name, options in SOURCE_OPTIONS.items() if option in options)
        if source not in owners:
            raise ValueError(f"is an option of {', '.join(owners)}, not of source '{source}'; leave it out")
        if option == "data_dir" and info.data.get("path") is not None:
            raise ValueError("stands for downloaded files, path for HDF5 files; leave one of them out")
        return value

    @field_validator("missing")
    @classmethod
    def _something_is_missing(cls, missing: MissingConfig, info: ValidationInfo) -> MissingConfig:
        source = info.data.get("source")
        if missing.ratio == 0 and source is not None and source not in _MAY_HAVE_HOLES:
            raise ValueError(f"source '{source}' has no holes of its own, so the ratio must be greater than 0")
        return cls._mask_file_where_needed(missing, source)

    @field_validator("train_missing", mode="before")
    @classmethod
    def _the_rest_is_as_in_missing(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, dict) and "mechanism" not in value and "missing" in info.data:
            return {**info.data["missing"].model_dump(exclude_unset=True), **value}
        return value

    @field_validator("train_missing")
    @classmethod
    def _train_masks_have_their_file(cls, missing: MissingConfig | None, info: ValidationInfo) -> MissingConfig | None:
        return None if missing is None else cls._mask_file_where_needed(missing, info.data.get("source"))

    @staticmethod
    def _mask_file_where_needed(missing: MissingConfig, source: str | None) -> MissingConfig:
        if source is not None and missing.mechanism == STORED:
            if source in PUBLISHED_SOURCES and missing.path is not None:
                raise ValueError(f"the masks of source '{source}' lie beside its data; leave `path` out")
            if source not in PUBLISHED_SOURCES and missing.path is None:
                raise ValueError(f"mechanism '{STORED}' needs the `path` of a mask file (1 observed, 0 missing)")
        return missing

    @property
    def missing_in_train(self) -> MissingConfig:
        """Which cells of the train rows are made missing."""
        return self.missing if self.train_missing is None else self.train_missing

    @model_serializer(mode="wrap")
    def _without_foreign_options(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is written is what may be read: options that do not exist for this source would be errors."""
        values: dict[str, Any] = handler(self)
        own = SOURCE_OPTIONS.get(self.source, ())
        foreign = {option for options in SOURCE_OPTIONS.values() for option in options if option not in own}
        unset = {key for key, value in values.items() if value is None}
        return {key: value for key, value in values.items() if key not in foreign | unset}


def is_closed_form(family: str, layers: int, head: str, posterior: str) -> bool:
    """Whether a model is trained and inferred by linear algebra: a linear decoder with free posteriors."""
    return family == "vad" and layers == 0 and head == "plain" and posterior == "learned"


class ModelConfig(Section):
    """Family, sizes and posterior of a model."""

    family: Annotated[Literal["vad", "vae"], _one_of("family", FAMILIES)] = "vad"
    latent: Annotated[Whole, Field(ge=1)] = 16
    layers: Annotated[Whole, Field(ge=0, description="hidden layers; 0 is a linear decoder")] = 1
    hidden: Annotated[Whole, Field(ge=1)] = 128
    activation: Annotated[str, _one_of("activation", ACTIVATIONS)] = "relu"
    layer_norm: bool = False  # before every activation
    dropout: Annotated[Real, Field(ge=0, lt=1, description="share of the decoder's hidden units")] = 0.0
    head: Annotated[str, _one_of("head", HEADS)] = "plain"  # or projection: columns are x, y of points in space
    skip: bool = False  # a linear map beside the decoder's hidden layers
    noise: Annotated[Literal["fixed", "learned"], _one_of("noise", NOISES)] = "fixed"  # learned: for each feature
    posterior: Annotated[Literal["learned", "fixed", "none"], _one_of("posterior", POSTERIORS)] = "learned"
    log_var: Annotated[Real, Field(ge=-50, le=10, description="log variance of a fixed posterior")] = -2.0

    @field_validator("skip")
    @classmethod
    def _skip_gives_columns(cls, skip: bool, info: ValidationInfo) -> bool:
        head = info.data.get("head", "plain")
        if skip and head != "plain":
            raise ValueError(f"gives columns, which takes head plain, got head {head}; leave one of them out")
        return skip

    @property
    def closed_form(self) -> bool:
        """See ``is_closed_form``."""
        return is_closed_form(self.family, self.layers, self.head, self.posterior)


class TrainConfig(Section):
    """How the decoder and the posteriors of the train rows are fitted.

    ``kl_weight`` multiplies the KL divergence where the squared error is summed over observed cells; the ``ratio_kl``
    of the published VAD code is this divided by the observed cells per row. 0 drops the prior.

    A linear decoder with learned posteriors is solved (model/linear.py): an epoch is an iteration over all rows, and
    nothing about batches and gradients exists. Its ``weight_decay`` is a ridge on the weights, in observed cells of an
    average column.
    """

    epochs: Annotated[Whole, Field(ge=1)] = 250
    batch_size: Annotated[Whole, Field(ge=1)] = 128
    kl_weight: Annotated[Real, Field(ge=0)] = 0.1
    net_lr: Annotated[Real, Field(gt=0)] = 2e-3
    latent_lr: Annotated[Real, Field(gt=0)] = 0.1
    weight_decay: Annotated[Real, Field(ge=0)] = 0.01
    latent_init: Annotated[str, _one_of("latent_init", LATENT_INITS)] = "pca"
    optimiser: Annotated[str, _one_of("optimiser", OPTIMISERS)] = "adamw"
    schedule: Annotated[str, _one_of("schedule", SCHEDULES)] = "cosine"
    precision: Annotated[str, _one_of("precision", PRECISIONS)] = "float32"  # of matrix products; state stays float32
    compile: Annotated[str, _one_of("compile", COMPILE)] = "auto"
    seed: Seed = 0


class InferConfig(Section):
    """How the posterior of new rows is fitted. A VAE starts from its encoder; with 0 steps it stays there."""

    steps: Annotated[Whole, Field(ge=0)] = 100
    lr: Annotated[Real, Field(gt=0)] = 0.15
    start: Annotated[str, _one_of("start", STARTS)] = "nearest"
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
    gpu_hours: Annotated[Real, Field(gt=0)] | None = None  # a budget: GPUs held by the search, times hours
    pack: Any = "auto"  # or how many trials train as one stack at most; auto: what a measurement says
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

    @field_validator("pack")
    @classmethod
    def _pack_is_auto_or_a_number(cls, value: object) -> object:
        number = as_number(value)
        if value != "auto" and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError("takes 'auto' or a number of trials from 1")
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


_OF_GRADIENTS = (
    *(("train", name) for name in ("batch_size", "net_lr", "latent_lr", "optimiser", "schedule")),
    *(("infer", name) for name in ("steps", "lr", "start")),
)


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
            for name in ("hidden", "activation", "layer_norm", "dropout", "skip"):
                del values["model"][name]
        if self.model.posterior != "fixed":
            del values["model"]["log_var"]
        if self.model.family == "vae":
            del values["train"]["latent_lr"], values["train"]["latent_init"], values["infer"]["start"]
        if self.infer.kl_weight is None:
            del values["infer"]["kl_weight"]
        if self.model.closed_form:
            for section, name in _OF_GRADIENTS:
                del values[section][name]
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
