"""Draws configurations from the domains of a search file, with Optuna."""

from __future__ import annotations

import random
from typing import Any

import optuna

from vadtune.config import SearchFile
from vadtune.config.domains import Choice, Domain, Range, Steps
from vadtune.core.errors import ConfigError

_TRIES = 20  # draws per requested configuration before a small space counts as exhausted


def suggest(search: SearchFile, trial: optuna.Trial) -> None:
    """Suggests a value for every active searched parameter, under its dotted key (define-by-run).

    A module-level function, because Ray pickles it (bound by ``functools.partial``).
    """
    sample: dict[str, Any] = {}
    for key, domain in search.domains.items():
        if search.active(sample, key):
            sample[key] = _suggest(trial, key, domain)


def _suggest(trial: optuna.Trial, key: str, domain: Domain) -> Any:
    match domain:
        case Choice(values=values):
            return trial.suggest_categorical(key, values)
        case Range(low=low, high=high):
            suggest_number = trial.suggest_int if domain.whole else trial.suggest_float
            return suggest_number(key, low, high, log=domain.log)
        case Steps(low=low, step=step):
            high = domain.probes()[-1]
            return (trial.suggest_int if isinstance(high, int) else trial.suggest_float)(key, low, high, step=step)
    raise AssertionError(f"no way to draw from {domain.kind}")


def draw_configurations(search: SearchFile, samples: int | None) -> list[dict[str, Any]]:
    """Returns distinct configurations, each a mapping from dotted keys to values of the searched parameters.

    Args:
        search: The search file. The sampler ``grid`` gives its grid in order, or a random part of it; any other gives
            ``search.initial``, then random draws that depend on ``search.seed`` only.
        samples: How many to draw, fewer from a smaller space; None for ``search.samples``, or the whole grid.

    Raises:
        ConfigError: Neither says how many.
    """
    wanted = search.search.samples if samples is None else samples
    if search.search.sampler == "grid":
        grid = search.grid()
        if wanted is None or wanted >= len(grid):
            return grid
        chosen = sorted(random.Random(search.search.seed).sample(range(len(grid)), wanted))
        return [grid[index] for index in chosen]
    if wanted is None:
        raise ConfigError("search.samples: a number is needed here, got only a budget; pass --samples 64, for example")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=search.search.seed))
    for point in search.search.initial:
        study.enqueue_trial(point)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_TRIES * wanted):
        if len(found) == wanted:
            break
        trial = study.ask()
        suggest(search, trial)
        found.setdefault(repr(sorted(trial.params.items())), dict(trial.params))
    return list(found.values())
