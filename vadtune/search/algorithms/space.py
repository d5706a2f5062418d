"""Suggests values for the domains of a search file with Optuna."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna

from vadtune.config import SearchFile
from vadtune.config.domains import Choice, Domain, Grid, Int, LogInt, LogUniform, QUniform, Uniform

_SUGGEST: dict[type[Domain], Callable[[optuna.Trial, str, Any], Any]] = {
    Choice: lambda trial, key, domain: trial.suggest_categorical(key, domain.values),
    Grid: lambda trial, key, domain: trial.suggest_categorical(key, domain.values),
    Int: lambda trial, key, domain: trial.suggest_int(key, domain.low, domain.high),
    LogInt: lambda trial, key, domain: trial.suggest_int(key, domain.low, domain.high, log=True),
    Uniform: lambda trial, key, domain: trial.suggest_float(key, domain.low, domain.high),
    LogUniform: lambda trial, key, domain: trial.suggest_float(key, domain.low, domain.high, log=True),
    QUniform: lambda trial, key, domain: _suggest_step(trial, key, domain),
}


def suggest(search: SearchFile, trial: optuna.Trial) -> None:
    """Suggests a value for every active searched parameter, under its dotted key (define-by-run).

    A module-level function, because Ray pickles it (bound by ``functools.partial``).
    """
    sample: dict[str, Any] = {}
    for key, domain in search.domains.items():
        if search.active(sample, key):
            sample[key] = _SUGGEST[type(domain)](trial, key, domain)


def _suggest_step(trial: optuna.Trial, key: str, domain: QUniform) -> Any:
    if isinstance(domain.low, int) and isinstance(domain.q, int):
        return trial.suggest_int(key, domain.low, domain.finite_values()[-1], step=domain.q)
    return trial.suggest_float(key, domain.low, domain.finite_values()[-1], step=domain.q)
