"""Packs: without Ray first, then a whole search."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.search.test_run import Finished, tiny
from vadtune.artifacts.held_out_predictions import HELD_OUT_FILE
from vadtune.artifacts.model_folder import MODEL_FILES, load_model
from vadtune.artifacts.run_folder import STATE_FILE, STATE_HASH
from vadtune.config import SearchFile, parse_search
from vadtune.core.errors import CheckpointError, TrialDiverged
from vadtune.data import IncompleteDataset, load_dataset
from vadtune.search.resume.retries import is_transient_failure
from vadtune.search.trials import packing
from vadtune.search.trials.packing import Pack
from vadtune.search.trials.placement import pack_size
from vadtune.search.trials.trainable import MODEL, TrainTrial
from vadtune.training.population import Population
from vadtune.training.scoring import evaluate

SECONDS = ("train_seconds", "inference_seconds")
SAMPLES = [
    {"model.latent": latent, "model.layers": layers, "train.kl_weight": 0.05 * (i + 1)}
    | ({"model.hidden": 4} if layers else {})
    | ({"model.activation": "tanh"} if latent == 1 else {})
    for i, (latent, layers) in enumerate([(2, 1), (2, 1), (3, 0), (2, 1), (3, 0), (1, 1)])
]


def searched(**search: Any) -> SearchFile:
    return parse_search(tiny(**search))


def pack_of(search: SearchFile, capacity: int) -> tuple[Pack, IncompleteDataset]:
    dataset = load_dataset(search.data)
    return Pack(search, dataset.search_data, dataset.scaler, dataset.feature_names, capacity=capacity), dataset


def alone(search: SearchFile, dataset: IncompleteDataset, sample: dict[str, Any], epoch: int) -> dict[str, float]:
    population = Population([search.trial_config(sample)], dataset.train)
    population.train_until(epoch)
    return evaluate(population, dataset.search_data)[0].scores


def assert_same_scores(one: dict[str, float], other: dict[str, float]) -> None:
    for name, value in one.items():
        if name not in SECONDS:
            assert other[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("capacity", [1, 2, 100])
def test_a_packed_trial_scores_as_it_does_alone(capacity: int) -> None:
    """Six trials of three shapes come at different moments, and go from report to report."""
    search = searched()

    async def run() -> list[list[dict[str, float]]]:
        async def trial(number: int) -> list[dict[str, float]]:
            await asyncio.sleep(0.02 * number)
            return [await pack.advance(f"t{number}", SAMPLES[number], epoch) for epoch in (3, 9, 27)]

        return await asyncio.gather(*(trial(number) for number in range(len(SAMPLES))))

    pack, dataset = pack_of(search, capacity)
    for sample, reports in zip(SAMPLES, asyncio.run(run()), strict=True):
        for epoch, scores in zip((3, 9, 27), reports, strict=True):
            assert_same_scores(alone(search, dataset, sample, epoch), scores)


def test_reports_in_close_order_start_from_each_other_packed_or_alone_resumed_or_not(tmp_path: Path) -> None:
    search = searched(report=1)
    pack, dataset = pack_of(search, 4)

    def trial() -> TrainTrial:
        own = TrainTrial.__new__(TrainTrial)  # without Ray
        described = {"scaler": dataset.scaler, "feature_names": dataset.feature_names}
        own.setup(SAMPLES[0], search=search, data=dataset.search_data, **described)
        return own

    async def packed() -> list[dict[str, float]]:
        return [await pack.advance("t", SAMPLES[0], epoch, since=epoch - 1) for epoch in range(1, 28)]

    first, second, reports = trial(), trial(), []
    for epoch in range(1, 28):
        assert (first._posteriors is not None) == (epoch > 10)
        reports.append(first.step())
        if epoch == 20:
            first.save_checkpoint(str(tmp_path))
            second.load_checkpoint(str(tmp_path))
            first = second
    for one, other in zip(asyncio.run(packed()), reports, strict=True):
        assert_same_scores(one, other)
    cold = alone(search, dataset, SAMPLES[0], 20)["val_missing_rmse"]
    assert reports[19]["val_missing_rmse"] != cold
    assert reports[19]["val_missing_rmse"] == pytest.approx(cold, rel=0.1)
    assert_same_scores(alone(search, dataset, SAMPLES[0], 27), reports[-1])


def test_configurations_of_one_shape_share_a_population() -> None:
    pack, _ = pack_of(searched(), 100)
    sizes: list[list[int]] = []

    async def watch(trials: asyncio.Future[Any]) -> None:
        while not trials.done():
            sizes.append(sorted(len(population.members) for population in pack._populations))
            await asyncio.sleep(0)

    async def run() -> None:
        trials = asyncio.gather(*(pack.advance(f"t{number}", sample, 3) for number, sample in enumerate(SAMPLES)))
        await watch(trials)

    asyncio.run(run())
    assert [1, 2, 3] in sizes
    assert not pack._populations


def test_a_checkpoint_goes_on_in_another_pack_or_in_none(tmp_path: Path) -> None:
    search = searched()
    first, dataset = pack_of(search, 4)
    second, _ = pack_of(search, 4)

    async def run() -> tuple[dict[str, bytes], int, dict[str, float]]:
        await asyncio.gather(*(first.advance(f"t{number}", SAMPLES[number], 9) for number in (0, 1, 5)))
        files = await first.checkpoint("t5")
        epoch = await second.restore("t5", files[STATE_FILE], files[STATE_HASH].decode())
        return files, epoch, await second.advance("t5", SAMPLES[5], 27)

    files, epoch, scores = asyncio.run(run())
    assert epoch == 9
    assert {f"{MODEL}/{name}" for name in MODEL_FILES} | {
        *(STATE_FILE, STATE_HASH, HELD_OUT_FILE, f"{MODEL}/manifest.json")
    } == set(files)
    assert_same_scores(alone(search, dataset, SAMPLES[5], 27), scores)
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert load_model(tmp_path / MODEL).config == search.trial_config(SAMPLES[5])


def test_a_diverged_trial_harms_no_neighbour() -> None:
    tree = tiny()
    tree["train"]["net_lr"] = {"choice": [1e-2, 1e30]}
    search = parse_search(tree)
    samples = [{**SAMPLES[0], "train.net_lr": lr} for lr in (1e-2, 1e30)]
    pack, dataset = pack_of(search, 4)

    async def run() -> list[Any]:
        trials = (pack.advance(f"t{number}", sample, 27) for number, sample in enumerate(samples))
        return await asyncio.gather(*trials, return_exceptions=True)

    good, bad = asyncio.run(run())
    assert isinstance(bad, TrialDiverged)
    assert_same_scores(alone(search, dataset, samples[0], 27), good)


@pytest.mark.parametrize("moment", ["train_epoch", "_stack"])
def test_out_of_memory_makes_the_pack_smaller_and_goes_on(
    moment: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it runs out in training or when one more is to join."""
    search = searched()
    pack, dataset = pack_of(search, 100)
    samples = [{**SAMPLES[0], "train.kl_weight": 0.05 * (i + 1)} for i in range(5)]
    original = getattr(Population, moment)

    def limited(population: Population, *parts: Any) -> None:
        if len(parts[0] if parts else population.members) > 2:
            raise torch.OutOfMemoryError("no room for more than two")
        original(population, *parts)

    async def run() -> list[dict[str, float]]:
        return await asyncio.gather(*(pack.advance(f"t{i}", sample, 9) for i, sample in enumerate(samples)))

    with monkeypatch.context() as patch:
        patch.setattr(Population, moment, limited)
        results = asyncio.run(run())
    assert "packs of at most 2 from now on" in caplog.text
    for sample, scores in zip(samples, results, strict=True):
        assert_same_scores(alone(search, dataset, sample, 9), scores)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("cuda"), RuntimeError("can't allocate memory: 640 GB")])
def test_a_configuration_that_fits_nowhere_fails_alone(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    search = searched()
    pack, dataset = pack_of(search, 100)
    samples = [{**SAMPLES[0], "model.latent": latent} for latent in (1, 3, 2)]
    original = Population.__init__

    def limited(population: Population, configs: Any, *args: Any) -> None:
        if configs[0].model.latent == 3:
            raise error
        original(population, configs, *args)

    async def run() -> list[Any]:
        trials = [pack.advance(f"t{i}", sample, 9) for i, sample in enumerate(samples)]
        return await asyncio.gather(*trials, return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(Population, "__init__", limited)
        small, large, other = asyncio.run(run())
    assert isinstance(large, MemoryError)
    assert "not enough memory on cpu for this configuration" in str(large)
    assert asyncio.run(pack.load()) == 2
    for sample, scores in ((samples[0], small), (samples[2], other)):
        assert_same_scores(alone(search, dataset, sample, 9), scores)


def test_of_a_population_that_fails_only_the_culprit_fails_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are told to go on from their last checkpoint, which Tune then does."""
    search = searched()
    pack, dataset = pack_of(search, 100)
    samples = [{**SAMPLES[0], "train.kl_weight": weight} for weight in (0.1, 0.2, 0.3)]
    original = Population.train_epoch

    def broken(population: Population) -> None:
        if any(member.config.train.kl_weight == 0.2 for member in population.members):
            raise RuntimeError("this one cannot be trained")
        original(population)

    async def run() -> list[Any]:
        trials = [pack.advance(f"t{i}", sample, 9) for i, sample in enumerate(samples)]
        return await asyncio.gather(*trials, return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(Population, "train_epoch", broken)
        first, second = asyncio.run(run()), asyncio.run(run())
    assert all(isinstance(error, CheckpointError) and is_transient_failure(error) for error in first)
    good, culprit, other = second
    assert str(culprit) == "this one cannot be trained"
    assert not is_transient_failure(culprit)
    for sample, scores in ((samples[0], good), (samples[2], other)):
        assert_same_scores(alone(search, dataset, sample, 9), scores)


def test_a_trial_that_leaves_makes_room() -> None:
    search = searched()
    pack, _ = pack_of(search, 1)

    async def run() -> dict[str, float]:
        first = asyncio.create_task(pack.advance("t0", SAMPLES[0], 27))
        second = asyncio.create_task(pack.advance("t1", SAMPLES[1], 9))
        await asyncio.sleep(0)
        assert await pack.load() == 2
        await pack.leave("t0")
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    assert asyncio.run(run())["val_missing_rmse"] > 0


@pytest.mark.parametrize(
    ("options", "gpus", "size"),
    [
        ({"samples": 100}, 0, 1),
        ({"samples": 100}, 1, 1),
        ({"samples": 100, "gpus_per_trial": 0.5}, 0, 1),
        ({"samples": 100, "gpus_per_trial": 0.5}, 1, 64),
        ({"samples": 6, "gpus_per_trial": 0.5}, 1, 6),
        ({"samples": 100, "gpus_per_trial": 0.5, "pack": 3}, 1, 3),
    ],
)
def test_auto_packs_trials_on_a_gpu_alone(
    options: dict[str, Any], gpus: int, size: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pack_size(searched(**options), 2) == size
    assert (f"search.pack {size}: " in caplog.text) == ("pack" not in options)


@pytest.mark.ray
def test_a_packed_search_finds_what_an_unpacked_one_finds(ray_here: None, tmp_path: Path) -> None:
    """The same random configurations, without a scheduler: every trial has the same scores, however it was trained."""
    options = {"samples": 6, "sampler": "random", "scheduler": "none"}
    packed = Finished(tmp_path / "packed", tiny(**options, pack=3, cpus_per_trial=1))
    unpacked = Finished(tmp_path / "unpacked", tiny(**options, pack=1))
    by_params = {repr(sorted(trial.params.items())): trial for trial in unpacked.trials}
    for trial in packed.trials:
        assert trial.status == "FINISHED"
        assert_same_scores(by_params[repr(sorted(trial.params.items()))].metrics, trial.metrics)
        assert load_model(Path(trial.checkpoint) / MODEL).config.flat() is not None


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("moment", ["advance", "checkpoint", "leave", "load"])
def test_a_killed_pack_fails_no_trial(
    moment: str, ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials go on from their last checkpoints in a new one, whatever they were asking of it."""

    class Killed(packing.RemotePack):
        """Waits until three trials have reported and go on, and dies at the next moment of a kind, once."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            (tmp_path / f"pack-{os.getpid()}").touch()

        def _moment(self, name: str) -> None:
            waiting = len(list(tmp_path.glob("goes-on-*"))) == 3
            if name == moment and waiting and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)

        async def advance(
            self, trial_id: str, sample: dict[str, Any], epoch: int, *, since: int = 0
        ) -> dict[str, float]:
            if since == 3 and not (tmp_path / "killed").exists():
                (tmp_path / f"goes-on-{trial_id}").touch()
                while len(list(tmp_path.glob("goes-on-*"))) < 3:
                    await asyncio.sleep(0.02)
            self._moment("advance")
            return await super().advance(trial_id, sample, epoch, since=since)

        async def checkpoint(self, trial_id: str) -> dict[str, bytes]:
            self._moment("checkpoint")
            return await super().checkpoint(trial_id)

        async def leave(self, trial_id: str) -> None:
            self._moment("leave")
            await super().leave(trial_id)

        async def load(self) -> int:
            self._moment("load")
            return await super().load()

        async def restore(self, trial_id: str, content: bytes, sha256: str) -> int:
            epoch = await super().restore(trial_id, content, sha256)
            (tmp_path / f"restored-{trial_id}-{epoch}").touch()
            return epoch

    options = {"sampler": "random", "scheduler": "none", "report": 3, "cpus_per_trial": 1}
    samples = 3 if moment in ("advance", "checkpoint") else 5
    monkeypatch.setattr(packing, "RemotePack", Killed)
    found = Finished(tmp_path / "killed-search", tiny(**options, samples=samples, pack=3))
    assert len(list(tmp_path.glob("pack-*"))) == 2
    assert found.outcome.failures == {}
    assert [trial.end for trial in found.trials] == ["completed"] * samples
    restored = {path.name.split("-")[1] for path in tmp_path.glob("restored-*")}
    if moment in ("advance", "checkpoint"):  # else some of the trials had ended, or had not begun
        assert len(restored) == 3
    dataset = load_dataset(found.file.data)
    for trial in found.trials:
        history = found.client.get_metric_history(trial.run_id, "val_missing_rmse")
        assert [metric.step for metric in history] == list(range(3, 28, 3)), "each epoch once, in one run"
        assert trial.trial_id not in restored or "vadtune.retries" in found.client.get_run(trial.run_id).data.tags
        alone = Population([load_model(Path(trial.checkpoint) / MODEL).config], dataset.train)
        alone.train_until(27)
        assert_same_scores(evaluate(alone, dataset.search_data)[0].scores, trial.metrics)
