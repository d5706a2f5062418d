"""Packs: actors that train the configurations of many trials as stacked populations.

On a GPU a training step of these small models is mostly launch overhead, so a step of many configurations costs little
more than a step of one. Each trial stays an ordinary Tune trial, see packed_trial.py. While it trains it is a member of
a population; while the scheduler decides about it, it is paused and the next configuration takes its place (continuous
batching). Configurations of one signature (training/member.py) share a population.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from torch import Tensor

from vadtune.artifacts.training_state import parse_state
from vadtune.config import SearchFile, TrialConfig
from vadtune.core.errors import CheckpointError, TrialDiverged
from vadtune.core.memory import is_out_of_memory
from vadtune.core.threads import use_threads
from vadtune.data import Scaler, SearchData
from vadtune.search.algorithms.schedulers import next_report, report_epochs
from vadtune.search.trials.trainable import POSTERIORS, write_checkpoint
from vadtune.training.inference import FittedModel
from vadtune.training.member import Member, State
from vadtune.training.population import Population
from vadtune.training.scoring import Evaluation, evaluate, follows_shortly

logger = logging.getLogger(__name__)


@dataclass
class _Job:
    """A trial that trains to its next report; its id may end with ``-`` and a mark of the process it runs in."""

    trial_id: str
    config: TrialConfig
    epoch: int
    done: asyncio.Future[dict[str, float]]
    posteriors: Tensor | None = None  # of the validation rows; the next report starts from them
    member: Member | None = None


class _PausedTrial(NamedTuple):
    """A trial that waits for the decision of the scheduler."""

    state: State
    model: FittedModel
    evaluation: Evaluation


class Pack:
    """Trains the trials that join it; the class of a Ray actor, usable without Ray.

    Args:
        search: The search file.
        data: The training and validation data.
        scaler: Scaler of the data, for the model folders.
        feature_names: Names of the columns, for the model folders.
        capacity: How many configurations train at once at most; the others wait.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        search: SearchFile,
        data: SearchData,
        scaler: Scaler,
        feature_names: Sequence[str],
        *,
        capacity: int,
        device: str = "cpu",
    ) -> None:
        self._search, self._data, self._scaler = search, data, scaler
        self._feature_names, self._device = feature_names, device
        self._capacity = self._asked_capacity = capacity
        self._due = report_epochs(search.search, search.epochs)
        self._populations: list[Population] = []
        self._alone: set[str] = set()  # trials whose population failed: in one of their own the culprit fails alone
        self._jobs: dict[str, _Job] = {}
        self._paused: dict[str, _PausedTrial] = {}
        self._restored: dict[str, State] = {}  # states of trials restored from a checkpoint
        self._loop: asyncio.Task[None] | None = None

    async def load(self) -> int:
        """Returns the number of trials in this pack, by which trials choose a pack."""
        return len(self._jobs) + len(self._paused)

    async def advance(self, trial_id: str, sample: dict[str, Any], epoch: int, *, since: int = 0) -> dict[str, float]:
        """Trains a trial from the epoch ``since`` to ``epoch`` and returns its scores; see ``scoring.evaluate``.

        Raises:
            TrialDiverged: Its loss or a score became NaN or infinite.
            CheckpointError: This pack has no state of the trial.
        """
        if since and trial_id not in self._restored:
            self._paused_trial(trial_id)
        job = _Job(trial_id, self._search.trial_config(sample), epoch, asyncio.get_running_loop().create_future())
        self._jobs[trial_id] = job
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        return await job.done

    async def restore(self, trial_id: str, content: bytes, sha256: str) -> int:
        """Restores a trial from the content of a checkpoint's state file; returns its epoch.

        Raises:
            ModelFolderError: The content is damaged.
        """
        self._restored[trial_id] = state = parse_state(content, sha256)
        return int(state["progress"][0])

    async def checkpoint(self, trial_id: str) -> dict[str, bytes]:
        """Returns the files of a checkpoint of a trial's last report: relative path -> content.

        Raises:
            CheckpointError: This pack has no state of the trial.
        """
        paused = self._paused_trial(trial_id)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            model = paused.model.with_metadata(self._scaler, self._feature_names)
            write_checkpoint(folder, model, paused.state, paused.evaluation, self._data.validation)
            return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def _paused_trial(self, trial_id: str) -> _PausedTrial:
        if trial_id not in self._paused:
            raise CheckpointError("its pack died, and the new pack has no state of it")
        return self._paused[trial_id]

    async def leave(self, trial_id: str) -> None:
        """Removes a trial that ended or was stopped."""
        self._paused.pop(trial_id, None)
        self._restored.pop(trial_id, None)
        job = self._jobs.pop(trial_id, None)
        if job is not None:
            job.done.cancel()

    async def _run(self) -> None:
        """Trains while a trial waits for a report."""
        try:
            while self._jobs:
                self._admit()
                for population in list(self._populations):
                    await self._train(population)
        except Exception as error:  # every waiting trial must fail
            for job in self._jobs.values():
                if not job.done.done():
                    job.done.set_exception(error)
            self._jobs.clear()
            self._populations.clear()
            raise

    def _admit(self) -> None:
        """Adds waiting trials in order of arrival, up to the capacity; removes members whose trials left."""
        members = [job.member for job in self._jobs.values() if job.member is not None]
        for population in list(self._populations):
            self._remove(population, [member for member in population.members if member not in members])
        room = self._capacity - len(members)
        for job in [job for job in self._jobs.values() if job.member is None][: max(0, room)]:
            paused = self._paused.pop(job.trial_id, None)
            state = self._restored.pop(job.trial_id, paused.state if paused else None)
            try:
                job.member = self._add_member(job, state)
                job.posteriors = None if state is None else state.get(POSTERIORS)
            except Exception as error:
                if not is_out_of_memory(error) or not self._populations:
                    self._give_up(job, error)
                    continue
                if state is not None:
                    self._restored[job.trial_id] = state
                self._limit(sum(len(population.members) for population in self._populations))
                return

    def _add_member(self, job: _Job, state: State | None) -> Member:
        config, alone = job.config, [other.member for other in self._jobs.values() if _id(other) in self._alone]
        for population in self._populations if _id(job) not in self._alone else []:
            if population.has_room_for(config) and population.members[0] not in alone:
                return population.join(config, state)
        population = Population([config], self._data.train, self._device)
        if state is not None:
            population.load_states([state])
        self._populations.append(population)
        return population.members[0]

    async def _train(self, population: Population) -> None:
        """Trains a population for one epoch and answers the trials that reached their next report."""
        try:
            await asyncio.to_thread(population.train_epoch)
        except Exception as error:
            jobs = [job for job in self._jobs.values() if job.member in population.members]
            if len(population.members) > 1 and is_out_of_memory(error):
                self._shrink(population)
                return
            self._populations.remove(population)
            if len(jobs) > 1:  # one of them is to blame, so each is tried again alone
                self._alone.update(map(_id, jobs))
                error = CheckpointError(f"a configuration that trained together with it failed: {error}")
            for job in jobs:
                self._give_up(job, error)
            return
        arrived, answered = [], []
        for job in list(self._jobs.values()):
            if job.member is None or job.member not in population.members:
                continue
            if reason := job.member.divergence():
                self._fail(job, TrialDiverged(reason))
            elif job.member.epoch >= job.epoch:
                arrived.append(job)
            else:
                continue
            answered.append(job.member)
        if arrived:
            await self._answer(population, arrived)
        for job in [job for job in self._jobs.values() if job.member in answered]:
            del self._jobs[job.trial_id]
        self._remove(population, answered)

    async def _answer(self, population: Population, jobs: Sequence[_Job]) -> None:
        """Scores trials together and resolves their futures; in halves where one fails or memory runs out."""
        members, start = [job.member for job in jobs if job.member is not None], [job.posteriors for job in jobs]
        try:
            evaluations = await asyncio.to_thread(evaluate, population, self._data, members, start=start)
        except Exception as error:
            if len(jobs) > 1:
                for half in (jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]):
                    await self._answer(population, half)
            else:
                self._fail(jobs[0], error)
            return
        for job, member, model, evaluation in zip(jobs, members, population.models(members), evaluations, strict=True):
            if job.done.done():  # the trial left meanwhile
                continue
            state = _state_on_host(population, member)
            if follows_shortly(next_report(self._due, member.epoch), member.epoch):
                state[POSTERIORS] = evaluation.posteriors.cpu()
            self._paused[job.trial_id] = _PausedTrial(state, model, evaluation)
            job.done.set_result(evaluation.scores)

    def _give_up(self, job: _Job, error: Exception) -> None:
        """Fails a trial that cannot go on; others that waited for the memory it could not have get it back."""
        if is_out_of_memory(error):
            rule = f"not enough memory on {self._device} for this configuration"
            error = MemoryError(f"{rule} ({str(error).splitlines()[0]}); lower the sizes that model.* may take")
            self._capacity = self._asked_capacity
        self._fail(job, error)
        del self._jobs[job.trial_id]

    @staticmethod
    def _fail(job: _Job, error: Exception) -> None:
        if not job.done.done():
            job.done.set_exception(error)

    def _remove(self, population: Population, members: list[Member]) -> None:
        if len(members) == len(population.members):
            self._populations.remove(population)
        elif members:
            population.leave(*members)

    def _shrink(self, population: Population) -> None:
        """Halves a population that ran out of memory and limits the pack to that size; surplus members wait."""
        self._limit(len(population.members) // 2)
        surplus = population.members[self._capacity :]
        for job in self._jobs.values():
            if job.member is not None and job.member in surplus:
                self._restored[job.trial_id] = _state_on_host(population, job.member)
                if job.posteriors is not None:
                    self._restored[job.trial_id][POSTERIORS] = job.posteriors
                job.member = None
        self._remove(population, surplus)

    def _limit(self, capacity: int) -> None:
        """Lowers the capacity after memory ran out."""
        self._capacity = capacity
        logger.warning("out of memory on %s: packs of at most %d from now on", self._device, capacity)
        if self._device != "cpu":
            torch.cuda.empty_cache()


class RemotePack(Pack):
    """A pack that reads its data from the object store, so that Ray can restart it.

    The reference is in a list, because Ray would replace a bare one by its value.
    """

    def __init__(self, search: SearchFile, data: list[Any], *args: Any, **options: Any) -> None:
        use_threads(1)
        super().__init__(search, ray.get(data[0]), *args, **options)


def _state_on_host(population: Population, member: Member) -> State:
    """Returns a copy of a member's state in host memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in population.state(member).items()}


def _id(job: _Job) -> str:
    """Returns the id of a trial, which stays when it joins again."""
    return job.trial_id.partition("-")[0]
