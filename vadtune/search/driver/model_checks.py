"""Checks before the first trial that the models of a search fit its data."""

from __future__ import annotations

from vadtune.config import SearchFile


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
