"""Whether the models of a search fit the columns of its data: told before the first trial, not by each of them."""

from __future__ import annotations

from vadtune.config import SearchFile


def check_shapes(search: SearchFile, features: int) -> None:
    """Makes sure that every head a search may take fits data of this many columns.

    Raises:
        ConfigError: One needs another number of columns.
    """
    model = search.trial_config({}).model
    for head in search.choices("model.head"):
        if head == "plain":  # fits any number; so the usual search need not wait here for PyTorch
            continue
        from vadtune.models import Architecture

        Architecture.of(model.model_copy(update={"head": head}), features)
