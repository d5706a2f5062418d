"""A resume executes nothing that was planted in the folder of a search."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.train._internal.storage import StorageContext

from tests.search.test_samplers import search_file
from vadtune.artifacts.run_folder import SNAPSHOT_FILE
from vadtune.core.errors import SearchError
from vadtune.search.algorithms.samplers import Searcher
from vadtune.search.resume.pickle_check import check_pickle
from vadtune.search.resume.snapshot import restore_snapshot


class Planted:
    """Executes a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def text_of(pickled: bytes) -> str:
    return json.dumps({"runner_data": {"_type": "CLOUDPICKLE_FALLBACK", "value": pickled.hex()}, "trial_data": []})


@pytest.fixture
def planted(tmp_path: Path) -> bytes:
    return pickle.dumps([1, {"a": Planted(f"touch {tmp_path / 'executed'}")}])


def write(folder: Path, members: dict[str, str | bytes]) -> None:
    (folder / "tune" / "abc").mkdir(parents=True)
    with zipfile.ZipFile(folder / SNAPSHOT_FILE, "w") as archive:
        for name, content in ({"experiment_state.json": '{"trial_data": []}'} | members).items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "members",
    [
        lambda planted: {"searcher-state.pkl": planted},
        lambda planted: {"callback-states.pkl": planted},
        lambda planted: {"experiment_state.json": text_of(planted)},
        lambda planted: {"experiment_state.json": text_of(planted).upper().replace("_TYPE", "_type")},
        lambda planted: {"experiment_state.json": json.dumps({"trial_data": [[text_of(planted), "{}"]]})},
        lambda planted: {"experiment_state.json": json.dumps({"trial_data": [["{}", text_of(planted)]]})},
    ],
    ids=["searcher", "callbacks", "runner", "upper case", "trial", "trial's results"],
)
def test_what_is_planted_in_a_snapshot_is_refused(
    members: Callable[[bytes], dict[str, str | bytes]], planted: bytes, tmp_path: Path
) -> None:
    write(tmp_path, members(planted))
    with pytest.raises(SearchError, match=r"snapshot.zip: names posix.system, .*resume only searches of your own"):
        restore_snapshot(tmp_path, str(tmp_path / "tune"))
    assert not (tmp_path / "executed").exists()


def test_what_is_planted_beside_a_snapshot_is_deleted(planted: bytes, tmp_path: Path) -> None:
    write(tmp_path, {})
    names = ("searcher-state-9.pkl", "experiment_state-9.json", "tuner.pkl", "abc/error.pkl")
    for name in names:
        (tmp_path / "tune" / name).write_bytes(planted)
    assert restore_snapshot(tmp_path, str(tmp_path / "tune")) == set()
    assert not any((tmp_path / "tune" / name).exists() for name in names)


def test_what_a_state_names_is_not_called() -> None:
    class Called:
        def __reduce__(self) -> tuple[Any, tuple[str, str, None, str]]:
            return StorageContext, ("/elsewhere", "x", None, "y")

    check_pickle(pickle.dumps(StorageContext))
    with pytest.raises(SearchError, match=r"calls .*StorageContext"):
        check_pickle(pickle.dumps(Called()))


@pytest.mark.parametrize("content", [b"", b"\x6f\x8c\xf0\xf0", b"}}}", pickle.dumps({"a": [1.5, "text"]})])
def test_what_names_nothing_passes(content: bytes) -> None:
    check_pickle(content)


def test_what_is_hidden_in_optunas_values_is_refused(planted: bytes, tmp_path: Path) -> None:
    searcher = Searcher(search_file(sampler="cmaes"))
    searcher.suggest("a")
    (trial,) = searcher.study.get_trials(deepcopy=False)
    storage, hidden = searcher.study._storage, planted.hex()
    storage.set_trial_system_attr(trial._trial_id, "cma:optimizer:0", hidden[:9])
    storage.set_trial_system_attr(trial._trial_id, "cma:optimizer:1", hidden[9:])
    searcher.save(str(tmp_path / "state.pkl"))
    with pytest.raises(SearchError, match=r"names posix.system"):
        Searcher(search_file(sampler="cmaes")).restore(str(tmp_path / "state.pkl"))
