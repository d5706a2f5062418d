"""Checks before the first trial that the models of a search fit its data."""

from __future__ import annotations

from vadtune.config import SearchFile
from vadtune.core.memory import check_memory

_PROCESS_BYTES = 350e6  # of a trial's process without its data


def check_heads(search: SearchFile, features: int) -> None:
    """Checks that every value of ``model.head`` in a search fits data with this many columns.

    Raises:
        ConfigError: A head needs another number of columns.
    """
    model = search.trial_config({}).model
    for head in search.choices("model.head"):
        if head == "plain":  # fits any number; so the usual search does not wait here for PyTorch
            continue
        from vadtune.models import Architecture

        Architecture.of(model.model_copy(update={"head": head}), features)


def check_trial_memory(search: SearchFile, rows: int, features: int, cores: int) -> None:
    """Checks that the trials that run at once fit into the free memory of this machine.

    Args:
        search: The search file.
        rows: Number of train rows.
        features: Number of columns.
        cores: Number of cores that trials share.

    Raises:
        DataError: They do not.
    """
    latents = [search.trial_config({}).model.latent]
    if "model.latent" in search.domains:
        latents = search.domains["model.latent"].probes()
    latent = max(latents)
    shared = 5.0 * rows * features  # values and mask, once for all trials
    # Of a row: mean, log variance, their moments, gradients and a copy for the checkpoint. Of a column in closed form:
    # second moments of the latents, before and after an iteration.
    each = _PROCESS_BYTES + 48.0 * rows * latent
    if 0 in search.choices("model.layers"):
        each += 24.0 * features * (latent + 1) ** 2
    trials = max(1, int(cores / max(search.search.cpus_per_trial, 1e-9)))
    check_memory(
        2 * shared + trials * each,
        f"a search of {rows:,} train rows and {features:,} columns (trials at once: {trials})",
        "take data.sample or fewer model.latent, more search.cpus_per_trial, so that fewer trials run at once, or a "
        "larger machine",
    )
