"""Packing: one actor trains many trials' configurations as stacked populations.

On a GPU a training step of these small models is mostly the launching of its operations, and a step of many
configurations costs little more than a step of one. Each trial stays an ordinary Tune trial (see packed_trial.py): it
joins the pack, asks for its next report, saves checkpoints and leaves. Between its reports a trial is a member of the
population of its signature; while the scheduler decides about it, it is set aside, so that its place is taken by the
next configuration without waiting for anybody (continuous batching).

Configurations that differ in widths and activation alone share a population too, padded, but not on a CPU: there a step
takes the time of its arithmetic, and zeros are multiplied as slowly as anything else.
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
from vadtune.core.threads import use_threads
from vadtune.data import Scaler, SearchData
from vadtune.search.algorithms.schedulers import next_report, report_epochs
from vadtune.search.trials.trial_runner import POSTERIORS, write_checkpoint
from vadtune.training.inference import FittedModel
from vadtune.training.member import Member, State
from vadtune.training.population import Population
from vadtune.training.scoring import Evaluation, evaluate, follows_shortly

logger = logging.getLogger(__name__)


@dataclass
class _Job:
    """A trial on its way to its next report."""

    trial_id: str
    config: TrialConfig
    epoch: int
    done: asyncio.Future[dict[str, float]]
    posteriors: Tensor | None = None  # of the validation rows, for its report to start from
    member: Member | None = None


class _PausedTrial(NamedTuple):
    """A trial while the scheduler decides about it."""

    state: State
    model: FittedModel
    evaluation: Evaluation


class Pack:
    """Trains the trials that join it; the class of a Ray actor, usable without Ray.

    Args:
        search: The search file.
        data: All a search sees.
        scaler: Of the data, for the model folders.
        feature_names: Likewise.
        capacity: How many configurations train at once at most; the others wait.
        device: Where to train.
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
        self._feature_names, self._capacity, self._device = feature_names, capacity, device
        self._pad = device != "cpu"
        self._due = report_epochs(search.search, search.epochs)
        self._populations: list[Population] = []
        self._jobs: dict[str, _Job] = {}
        self._aside: dict[str, _PausedTrial] = {}
        self._given: dict[str, State] = {}  # states of trials that come from a checkpoint
        self._loop: asyncio.Task[None] | None = None

    async def load(self) -> int:
        """Returns how many trials are here, for those that choose where to go."""
        return len(self._jobs) + len(self._aside)

    async def advance(self, trial_id: str, sample: dict[str, Any], epoch: int, *, since: int = 0) -> dict[str, float]:
        """Trains a trial, which is at the epoch ``since``, up to an epoch and returns its scores; see
        evaluation.evaluate.

        Raises:
            TrialDiverged: Its loss or a score became NaN or infinite.
            CheckpointError: Its state is not here.
        """
        if since and trial_id not in self._given:
            self._held(trial_id)
        job = _Job(trial_id, self._search.trial_config(sample), epoch, asyncio.get_running_loop().create_future())
        self._jobs[trial_id] = job
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        return await job.done

    async def restore(self, trial_id: str, content: bytes, sha256: str) -> int:
        """Takes the state that a trial goes on from, the content of a checkpoint's state file; returns its epoch.

        Raises:
            ModelFolderError: It was damaged or altered.
        """
        self._given[trial_id] = state = parse_state(content, sha256)
        return int(state["progress"][0])

    async def checkpoint(self, trial_id: str) -> dict[str, bytes]:
        """Returns the files of a trial's checkpoint, as of its last report: relative path -> content.

        Raises:
            CheckpointError: Its state is not here.
        """
        aside = self._held(trial_id)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            model = aside.model.with_metadata(self._scaler, self._feature_names)
            write_checkpoint(folder, model, aside.state, aside.evaluation, self._data.validation)
            return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def _held(self, trial_id: str) -> _PausedTrial:
        if trial_id not in self._aside:
            raise CheckpointError("its pack died, and the new one knows nothing of it")
        return self._aside[trial_id]

    async def leave(self, trial_id: str) -> None:
        """Forgets a trial that ended or was stopped."""
        self._aside.pop(trial_id, None)
        self._given.pop(trial_id, None)
        job = self._jobs.pop(trial_id, None)
        if job is not None:
            job.done.cancel()

    async def _run(self) -> None:
        """Trains as long as a trial waits for a report."""
        try:
            while self._jobs:
                self._admit()
                for population in list(self._populations):
                    await self._train(population)
        except Exception as error:  # whoever waits must hear of it
            for job in self._jobs.values():
                if not job.done.done():
                    job.done.set_exception(error)
            self._jobs.clear()
            self._populations.clear()
            raise

    def _admit(self) -> None:
        """Lets trials in, in the order they came, as long as there is room; lets go of those that left."""
        members = [job.member for job in self._jobs.values() if job.member is not None]
        for population in list(self._populations):
            self._remove(population, [member for member in population.members if member not in members])
        room = self._capacity - len(members)
        for job in [job for job in self._jobs.values() if job.member is None][: max(0, room)]:
            aside = self._aside.pop(job.trial_id, None)
            state = self._given.pop(job.trial_id, aside.state if aside else None)
            try:
                job.member = self._let_in(job.config, state)
                job.posteriors = None if state is None else state.get(POSTERIORS)
            except torch.OutOfMemoryError:
                if state is not None:
                    self._given[job.trial_id] = state
                self._limit(sum(len(population.members) for population in self._populations))
                return

    def _let_in(self, config: TrialConfig, state: State | None) -> Member:
        for population in self._populations:
            if population.has_room_for(config):
                return population.join(config, state)
        population = Population([config], self._data.train, self._device, pad=self._pad)
        if state is not None:
            population.load_states([state])
        self._populations.append(population)
        return population.members[0]

    async def _train(self, population: Population) -> None:
        """Trains a population one epoch further and answers the trials that are where they wanted to be."""
        try:
            await asyncio.to_thread(population.train_epoch)
        except torch.OutOfMemoryError:
            self._shrink(population)
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
        """Scores trials that are where they wanted to be, together, or apart where one of them or the memory fails."""
        members, start = [job.member for job in jobs if job.member is not None], [job.posteriors for job in jobs]
        try:
            evaluations = await asyncio.to_thread(evaluate, population, self._data, members, start=start)
        except (TrialDiverged, torch.OutOfMemoryError) as error:
            if len(jobs) > 1:
                for half in (jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]):
                    await self._answer(population, half)
            elif isinstance(error, TrialDiverged):
                self._fail(jobs[0], error)
            else:
                raise
            return
        for job, member, model, evaluation in zip(jobs, members, population.models(members), evaluations, strict=True):
            if job.done.done():  # it left meanwhile
                continue
            state = _copied(population, member)
            if follows_shortly(next_report(self._due, member.epoch), member.epoch):
                state[POSTERIORS] = evaluation.posteriors.cpu()
            self._aside[job.trial_id] = _PausedTrial(state, model, evaluation)
            job.done.set_result(evaluation.scores)

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
        """Halves the pack: later members wait, and go on from where they are."""
        self._limit(len(population.members) // 2)
        surplus = population.members[self._capacity :]
        for job in self._jobs.values():
            if job.member is not None and job.member in surplus:
                self._given[job.trial_id] = _copied(population, job.member)
                if job.posteriors is not None:
                    self._given[job.trial_id][POSTERIORS] = job.posteriors
                job.member = None
        self._remove(population, surplus)

    def _limit(self, capacity: int) -> None:
        """Lets no more than so many train at once from now on, because more do not fit into the memory."""
        if capacity == 0:
            raise MemoryError(f"not enough memory on {self._device} for one configuration; lower the model's sizes")
        self._capacity = capacity
        logger.warning("out of memory on %s: packs of at most %d from now on", self._device, capacity)
        if self._device != "cpu":
            torch.cuda.empty_cache()


class RemotePack(Pack):
    """A pack whose data comes from the object store, by a reference in a list, so that a new one can be started."""

    def __init__(self, search: SearchFile, data: list[Any], *args: Any, **options: Any) -> None:
        use_threads(1)
        super().__init__(search, ray.get(data[0]), *args, **options)


def _copied(population: Population, member: Member) -> State:
    """Returns a member's state, in memory of its own on the host."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in population.state(member).items()}
