"""What a resume starts from: whole, of one moment, and never silently left aside."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.execution.tune_controller import TuneController

from vadtune.artifacts.run_folder import SNAPSHOT_FILE
from vadtune.core.errors import SearchError, VadtuneError
from vadtune.search.resume.retries import Recoverable
from vadtune.search.resume.snapshot import atomic_snapshots, check_trusted, restore_snapshot

TRIALS = "experiment_state.json"


class Controller:
    """As much of Tune's controller as writes state: two files, the second one later than the first."""

    def __init__(self, folder: Path, session: str) -> None:
        self._session_str = session
        self._storage = type("Storage", (), {"experiment_driver_staging_path": str(folder)})
        self.trials, self.dies = ["a"], False


def write_state(controller: Controller) -> None:
    folder, session = Path(controller._storage.experiment_driver_staging_path), controller._session_str
    trials = [[json.dumps({"trial_id": trial}), "{}"] for trial in controller.trials]
    (folder / f"experiment_state-{session}.json").write_text(json.dumps({"trial_data": trials}))
    if controller.dies:
        raise KeyboardInterrupt
    (folder / f"searcher-state-{session}.pkl").write_bytes(repr(controller.trials).encode())


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr(TuneController, "save_to_dir", write_state)
    (tmp_path / "staging").mkdir()
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "tuner.pkl").write_bytes(b"")  # written by Tune before anything else
    return Controller(tmp_path / "staging", "2026-01-31_12-00-00")


def put_back_files(folder: Path) -> dict[str, bytes]:
    return {path.name.partition("-2")[0]: path.read_bytes() for path in sorted((folder / "tune").glob("*-2*"))}


def test_a_snapshot_is_of_one_moment(controller: Controller, tmp_path: Path) -> None:
    with atomic_snapshots(tmp_path):
        TuneController.save_to_dir(controller)
        controller.trials, controller.dies = ["a", "b"], True
        with pytest.raises(KeyboardInterrupt):
            TuneController.save_to_dir(controller)
    assert restore_snapshot(tmp_path, str(tmp_path / "tune")) == {"a"}
    files = put_back_files(tmp_path)
    assert set(files) == {"experiment_state", "searcher-state"}
    assert files["searcher-state"] == b"['a']"
    assert TuneController.save_to_dir is write_state


def test_a_state_without_trials_is_refused(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TuneController, "save_to_dir", lambda self: None)  # as if Tune wrote elsewhere
    with atomic_snapshots(tmp_path), pytest.raises(SearchError, match=r"must save experiment_state\.json, got \[\]"):
        TuneController.save_to_dir(controller)


def test_what_is_put_back_is_the_last_of_tunes_files(controller: Controller, tmp_path: Path) -> None:
    with atomic_snapshots(tmp_path):
        TuneController.save_to_dir(controller)
    (tmp_path / "tune" / "experiment_state-2026-01-31_12-00-05.json").write_text("")  # cut short by a kill
    restore_snapshot(tmp_path, str(tmp_path / "tune"))
    last = max((tmp_path / "tune").glob("experiment_state-*.json"))
    assert len(json.loads(last.read_text())["trial_data"]) == 1


def test_a_full_disk_ends_no_search(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(archive: zipfile.ZipFile, path: Path, name: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with atomic_snapshots(tmp_path):
        TuneController.save_to_dir(controller)
        controller.trials.append("b")
        with monkeypatch.context() as patch:
            patch.setattr(zipfile.ZipFile, "write", full)
            TuneController.save_to_dir(controller)
            TuneController.save_to_dir(controller)
        assert restore_snapshot(tmp_path, str(tmp_path / "tune")) == {"a"}
        TuneController.save_to_dir(controller)
    assert caplog.text.count("make room") == 1
    assert restore_snapshot(tmp_path, str(tmp_path / "tune")) == {"a", "b"}


def test_without_a_snapshot_nothing_is_put_back(tmp_path: Path) -> None:
    assert restore_snapshot(tmp_path, str(tmp_path / "tune")) == set()
    assert not (tmp_path / "tune").exists()


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        archive(),
        archive(**{"experiment_state.json": "[]"}),
        archive(**{"experiment_state.json": "{"}),
    ],
    ids=["empty", "cut", "none", "other", "damaged"],
)
def test_a_damaged_snapshot_is_one_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT_FILE).write_bytes(content)
    with pytest.raises(VadtuneError, match=r"snapshot\.zip: cannot be read \(.*\); start the search again"):
        restore_snapshot(tmp_path, str(tmp_path / "tune"))


@pytest.mark.parametrize("name", ["snapshot.zip", "tune/tuner.pkl", "tune/abc/error.pkl", "."])
def test_a_resume_refuses_state_that_others_may_have_written(name: str, tmp_path: Path) -> None:
    for path in ("snapshot.zip", "tune/tuner.pkl", "tune/abc/error.pkl"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    check_trusted(tmp_path)
    path = tmp_path / name
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(SearchError, match=r"executes what is in it, so it must be yours.*chmod -R go-w"):
        check_trusted(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_a_resume_refuses_state_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "snapshot.zip").write_bytes(b"")
    os.chown(tmp_path / "snapshot.zip", 12345, -1)
    with pytest.raises(SearchError, match="owner 12345"):
        restore_snapshot(tmp_path, str(tmp_path / "tune"))


def test_a_pickle_in_a_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    """Ray would load it before the trainable sees the checkpoint."""

    class Executed:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "executed",)  # type: ignore[return-value]

    class Trial(Recoverable):
        def load_checkpoint(self, checkpoint_dir: Any) -> None: ...

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    for number in range(2):
        (tmp_path / f"checkpoint_{number}").mkdir()
        (tmp_path / f"checkpoint_{number}" / "_dict_checkpoint.pkl").write_bytes(pickle.dumps(Executed()))
    trial = Trial.__new__(Trial)
    trial.config = {}
    result = type(
        "Result", (), {"checkpoint": tune.Checkpoint.from_directory(tmp_path / "checkpoint_1"), "metrics": {}}
    )
    trial.restore(result())
    assert not (tmp_path / "executed").exists()
    assert "began again at epoch 0" in trial._note
