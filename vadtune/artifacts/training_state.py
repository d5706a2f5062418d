"""Training states: training_state.safetensors in a trial's checkpoint, from which training resumes, and its SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from vadtune.artifacts.run_folder import MOST_STATE_BYTES, STATE_FILE, STATE_HASH
from vadtune.core.errors import ModelFolderError
from vadtune.core.reading import read_bounded
from vadtune.training.member import State
from vadtune.training.population import Population


def save_state(folder: Path, state: State) -> None:
    """Writes the training state of one member of a population into a checkpoint."""
    content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    (folder / STATE_FILE).write_bytes(content)
    (folder / STATE_HASH).write_text(hashlib.sha256(content).hexdigest() + "\n")


def load_state(folder: Path, population: Population) -> State:
    """Restores a population of one member from what ``save_state`` wrote, and returns the state.

    Raises:
        ModelFolderError: The file is missing, damaged or altered.
    """
    try:
        content, sha256 = (
            read_bounded(folder / STATE_FILE, MOST_STATE_BYTES),
            read_bounded(folder / STATE_HASH).decode(),
        )
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{folder}: training cannot be resumed from it, {STATE_FILE}: {error}") from error
    state = parse_state(content, sha256)
    population.load_states([state])
    return state


def parse_state(content: bytes, sha256: str) -> State:
    """Returns the state in the content of a state file, given the content of its hash file.

    Raises:
        ModelFolderError: The content is damaged or altered.
    """
    try:
        if hashlib.sha256(content).hexdigest() != sha256.strip():
            raise ValueError(f"its SHA-256 differs from {STATE_HASH}")
        return dict(load_tensors(content))
    except (ValueError, SafetensorError) as error:
        raise ModelFolderError(f"{STATE_FILE}: training cannot be resumed from it: {error}") from error
