"""Adapts the saved state of Tune's trial generator to where a search lies now, and to how many trials it is to have.

Tune makes new trials from the experiment that is pickled in this state, with the folder it had when the search began,
and passes over the one that it is restored with. It proposes none once their number is reached.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from ray import cloudpickle

from vadtune.artifacts.run_folder import is_uri

GENERATOR_STATE = "search_gen_state"
"""The stem of the file."""


def adapted_state(content: bytes, tune: str, samples: int | None) -> bytes:
    """Returns the state with the folder in which Tune keeps new trials and their number, as of a search not finished.

    Args:
        content: The state, a pickle: check before that it may be trusted.
        tune: Folder or URI in which Tune keeps its state.
        samples: Number of trials, with those there are; None if only a budget ends the search.

    Raises:
        ValueError: This version of Ray saves it in another form.
    """
    try:
        state = pickle.loads(content)
        state |= {"total_samples": sys.maxsize if samples is None else samples, "finished": False}
        if not is_uri(tune):
            state["experiment"].spec["storage"].storage_fs_path = str(Path(tune).parent)
    except (KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{GENERATOR_STATE}: {error!r}") from error
    adapted: bytes = cloudpickle.dumps(state)
    return adapted
