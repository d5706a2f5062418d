from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import trial_config
from tests.training.test_population import KINDS, assert_same_state, trained
from vadtune.artifacts.training_state import load_state, save_state
from vadtune.core.errors import ModelFolderError
from vadtune.data import IncompleteDataset
from vadtune.training.population import Population


@pytest.mark.parametrize("model", KINDS)
def test_training_resumed_from_disk_changes_nothing(
    model: dict[str, str], tmp_path: Path, iris: IncompleteDataset
) -> None:
    config = trial_config(model=model)
    save_state(tmp_path, trained(config, iris.train, epochs=2).states()[0])
    resumed = Population([config], iris.train)
    load_state(tmp_path, resumed)
    resumed.train_until(4)
    assert_same_state(trained(config, iris.train), resumed)


def test_a_damaged_training_state_is_a_clear_error(tmp_path: Path, iris: IncompleteDataset) -> None:
    population = trained(trial_config(), iris.train, epochs=1)
    save_state(tmp_path, population.states()[0])
    path = tmp_path / "training_state.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(ModelFolderError, match="training cannot be resumed"):
            load_state(tmp_path, population)
    path.unlink()
    with pytest.raises(ModelFolderError, match="training cannot be resumed"):
        load_state(tmp_path, population)
