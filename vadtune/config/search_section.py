"""The section ``search`` of a search file, and the metrics that trials report."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from vadtune.core.errors import unknown_name
from vadtune.core.schema import Real, Section, Seed, Whole, as_number, one_of, word_or_count

SAMPLERS = ("tpe", "random", "grid", "cmaes")
SCHEDULERS = ("asha", "hyperband", "median", "none")

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

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: object) -> float | None:
    """Returns a duration in seconds; None if it is no duration above 0."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if value > 0 and math.isfinite(value) else None
    match = _DURATION.fullmatch(str(value).strip())
    seconds = float(match[1]) * _SECONDS[match[2] or "s"] if match else 0.0
    return seconds or None


def _check_duration(value: object) -> object:
    if value is not None and _seconds(value) is None:
        raise ValueError("takes a duration above 0 such as 90s, 30m, 2h or 1d")
    return value


_Duration = Annotated[Any, AfterValidator(_check_duration)]


class SearchConfig(Section):
    """The section ``search``: how configurations are proposed, stopped and scored."""

    samples: Annotated[Whole, Field(ge=1)] | None = None  # None: 64, or the whole grid
    sampler: Annotated[str, one_of("sampler", SAMPLERS)] = "tpe"
    scheduler: Annotated[str, one_of("scheduler", SCHEDULERS)] = "asha"
    grace_epochs: Annotated[Whole, Field(ge=1)] | None = None  # None: a ninth of the epochs
    reduction_factor: Annotated[Whole, Field(ge=2)] = 3
    report: Annotated[Any, word_or_count("rungs", "epochs")] = "rungs"  # a number: report every so many epochs
    metric: str = "val_missing_rmse"
    seed: Seed = 0
    time_budget: _Duration = None
    trial_timeout: _Duration = None  # the longest time between two reports of a trial
    cpus_per_trial: Annotated[Real, Field(gt=0)] = 1
    gpus_per_trial: Annotated[Real, Field(ge=0)] = 0
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

    @property
    def trial_timeout_s(self) -> float | None:
        """The trial timeout in seconds, or None."""
        return None if self.trial_timeout is None else _seconds(self.trial_timeout)

    @property
    def time_budget_s(self) -> float | None:
        """The time budget in seconds, or None."""
        return None if self.time_budget is None else _seconds(self.time_budget)
