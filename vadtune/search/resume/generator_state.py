"""Adapts the saved state of Tune's trial generator to where a search lies now.

Tune makes new trials from the experiment that is pickled in this state, with the folder it had when the search began,
and passes over the one that it is restored with.
"""

from __future__ import annotations

import pickle
from pathlib import Path

from ray import cloudpickle

from vadtune.artifacts.run_folder import is_uri

GENERATOR_STATE = "search_gen_state"
"""The stem of the file."""


def adapted_state(content: bytes, tune: str) -> bytes:
    """Returns the state with the folder in which Tune keeps new trials.

    Args:
        content: The state, a pickle: check before that it may be trusted.
        tune: Folder or URI in which Tune keeps its state.

    Raises:
        ValueError: This version of Ray saves it in another form.
    """
    try:
        state = pickle.loads(content)
        if not is_uri(tune):
            state["experiment"].spec["storage"].storage_fs_path = str(Path(tune).parent)
    except (KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{GENERATOR_STATE}: {error!r}") from error
    adapted: bytes = cloudpickle.dumps(state)
    return adapted
