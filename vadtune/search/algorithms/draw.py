"""Configurations of a search without a search: its whole grid, or a random sample of it."""

from __future__ import annotations

import random
from typing import Any

import optuna

from vadtune.config import SearchFile
from vadtune.search.algorithms.space import suggest

_TRIES = 20  # draws for each configuration that is asked for, before a small space counts as exhausted


def draw_configurations(search: SearchFile, samples: int | None) -> list[dict[str, Any]]:
    """Returns searched parameters under dotted keys, a mapping for each configuration, no two the same.

    Args:
        search: The search file. With the sampler ``grid`` its grid in order, or a random part of it; with any other
            random draws, the same for the same ``search.seed``. What the file lists under ``search.initial`` comes
            first.
        samples: How many; None for ``search.samples``, or the whole grid. Fewer come out of a space that has fewer.
    """
    wanted = search.search.samples if samples is None else samples
    if search.search.sampler == "grid":
        grid = search.grid()
        if wanted is None or wanted >= len(grid):
            return grid
        chosen = sorted(random.Random(search.search.seed).sample(range(len(grid)), wanted))
        return [grid[index] for index in chosen]
    assert wanted is not None, "a search that is no grid has a number of samples"
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
