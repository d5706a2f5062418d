"""Trials whose worker, disk, memory or checkpoint fails, for real: only they are touched, and the reason is told."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.search.test_run import Finished, tiny
from vadtune.search.resume.retries import RECOVERY
from vadtune.search.trials import placement, trainable

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


def misbehaving(folder: Path, monkeypatch: pytest.MonkeyPatch, misbehave: Any, *, times: int = 1) -> None:
    """Makes workers misbehave in the step from epoch 3 to 9 of the first trial, so many times."""

    class Misbehaves(trainable.TrainTrial):
        def step(self) -> dict[str, Any]:
            if self._population.epoch == 3 and self._population.members[0].config.model.latent == 3:
                before = len(list(folder.glob("attempt-*")))
                if before < times:
                    (folder / f"attempt-{before}").touch()
                    misbehave(self, folder)
            return super().step()

    monkeypatch.setattr("vadtune.search.trials.placement.TrainTrial", Misbehaves)


def searched(folder: Path, **search: Any) -> Finished:
    first = {"model.latent": 3, "model.layers": 0}
    tree = tiny(
        samples=3, scheduler="none", report=3, initial=[first, {"model.latent": 1, "model.layers": 0}], **search
    )
    tree["model"]["latent"] = {"choice": [1, 2, 3]}
    tree["model"]["layers"] = {"choice": [0, 1]}
    return Finished(folder, tree)


def steps(found: Finished, index: int = 0) -> list[int]:
    return [m.step for m in found.client.get_metric_history(found.trials[index].run_id, "val_missing_rmse")]


def tags(found: Finished, index: int = 0) -> dict[str, str]:
    return dict(found.client.get_run(found.trials[index].run_id).data.tags)


def kill(trial: Any, folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of the trial that has most."""
    return max((sorted(trial.glob("checkpoint_*")) for trial in folder.glob("runs/*/tune/*")), key=len)


def damage(path: Path) -> None:
    state = path / "training_state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)


def test_a_killed_worker_goes_on_from_its_last_checkpoint_in_the_same_run(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    misbehaving(tmp_path, monkeypatch, kill)
    found = searched(tmp_path)
    assert len(list(tmp_path.glob("attempt-*"))) == 1, "it went on from epoch 3, and did not come by here again"
    assert [trial.end for trial in found.trials] == ["completed"] * 3
    assert steps(found) == list(range(3, 28, 3)), "each epoch once, in one run"
    assert found.outcome.failures == {}
    assert tags(found)["vadtune.retries"].startswith("1 of 3, the last because its worker died")
    assert "trial-0001 is retried (1 of 3): its worker died, or the node it ran on" in caplog.text


def test_retries_are_bounded(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    misbehaving(tmp_path, monkeypatch, kill, times=100)
    found = searched(tmp_path)
    assert len(list(tmp_path.glob("attempt-*"))) == 4
    assert [trial.status for trial in found.trials] == ["FAILED", "FINISHED", "FINISHED"]
    assert found.trials[0].end == "error: its worker died, or the node it ran on"
    assert list(found.outcome.failures) == ["trial-0001"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Misbehaves(trainable.TrainTrial):
        def step(self) -> dict[str, Any]:
            if self._population.epoch == 9 and not (tmp_path / "attempt").exists():
                (tmp_path / "attempt").touch()
                damage(checkpoints(tmp_path)[-1])
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step()

    monkeypatch.setattr("vadtune.search.trials.placement.TrainTrial", Misbehaves)
    found = searched(tmp_path)
    assert [trial.end for trial in found.trials] == ["completed"] * 3
    assert steps(found) == list(range(3, 28, 3))
    assert "trial-0001 went on from another checkpoint: " in caplog.text
    assert "SHA-256 differs" in tags(found)["vadtune.recovery"]


def test_without_a_whole_checkpoint_a_trial_begins_again(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def damage_all(trial: Any, folder: Path) -> None:
        for path in checkpoints(folder):
            damage(path)
        kill(trial, folder)

    misbehaving(tmp_path, monkeypatch, damage_all)
    found = searched(tmp_path)
    assert [trial.end for trial in found.trials] == ["completed"] * 3
    assert steps(found) == list(range(3, 28, 3)), "epoch 3 was not logged twice"
    assert "trial-0001 began again at epoch 0, no checkpoint could be used: " in caplog.text


def test_a_full_disk_in_mid_checkpoint_costs_one_step_only(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(trial: Any, folder: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, -1))  # less than a checkpoint, for this worker alone

    misbehaving(tmp_path, monkeypatch, fill)
    found = searched(tmp_path)
    assert [trial.end for trial in found.trials] == ["completed"] * 3
    assert steps(found) == list(range(3, 28, 3))
    assert "its checkpoint could not be written" in tags(found)["vadtune.retries"]
    assert "make room" in caplog.text


@pytest.mark.parametrize("how", ["sleeps", "stopped"])
def test_a_hanging_trial_fails_alone(how: str, ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(trial: Any, folder: Path) -> None:
        if how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)

    misbehaving(tmp_path, monkeypatch, hang, times=100)
    start = time.monotonic()
    found = searched(tmp_path, trial_timeout="4s")
    assert time.monotonic() - start < 60
    assert len(list(tmp_path.glob("attempt-*"))) == 1, "it is not tried again"
    assert [trial.status for trial in found.trials] == ["FAILED", "FINISHED", "FINISHED"]
    reason = "error: hung: nothing reported within 4 seconds (search.trial_timeout), last epoch 3"
    assert found.trials[0].end == found.outcome.failures["trial-0001"] == reason


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets eight hidden units need more memory than there is, in PyTorch's words."""

    class Large(trainable.TrainTrial):
        def reset_config(self, new_config: dict[str, Any]) -> bool:
            if new_config.get("model.hidden") == 8:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: tried to allocate 80 TB")
            return super().reset_config(new_config)

    monkeypatch.setattr(placement, "TrainTrial", Large)


@pytest.mark.usefixtures("_large")
def test_a_configuration_too_large_for_the_memory_fails_alone(ray_here: None, tmp_path: Path) -> None:
    big = {"model.latent": 1, "model.layers": 1, "model.hidden": 8}
    found = Finished(tmp_path, tiny(samples=3, initial=[{"model.latent": 1, "model.layers": 0}, big]))
    assert found.trials[0].status != "FAILED"
    assert found.trials[1].status == "FAILED"
    assert found.trials[1].end.startswith("error: out of memory, lower the sizes"), found.trials[1].end
    assert "vadtune.retries" not in tags(found, 1)


@pytest.mark.usefixtures("_large")
def test_a_worker_that_cannot_start_a_configuration_is_not_started_again(ray_here: None, tmp_path: Path) -> None:
    big = {"model.latent": 1, "model.layers": 1, "model.hidden": 8}
    found = Finished(tmp_path, tiny(samples=1, initial=[big]))  # the first trial of a worker fails in its constructor
    (trial,) = found.trials
    assert trial.end.startswith("error: out of memory"), trial.end
    assert "vadtune.retries" not in tags(found)


def test_the_note_of_a_recovery_is_told_once() -> None:
    class Empty(trainable.Recoverable):
        def step(self) -> dict[str, Any]:
            return {}

    worker = Empty()
    worker._note = "began again"
    assert worker.train()[RECOVERY] == "began again"
    assert RECOVERY not in worker.train()
