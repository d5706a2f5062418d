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
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vadtune.checkpoint import parse_state
from vadtune.config import TrialConfig
from vadtune.data import Part, Scaler, SearchData
from vadtune.errors import CheckpointError, TrialDiverged
from vadtune.evaluation import Evaluation, evaluate, follows_shortly
from vadtune.inference import FittedModel
from vadtune.model import Architecture
from vadtune.search.draw import draw_configurations
from vadtune.search.schedulers import next_report, report_epochs
from vadtune.search.trainable import POSTERIORS, write_checkpoint
from vadtune.search_file import SearchFile
from vadtune.training import Member, Population, State

logger = logging.getLogger(__name__)

_DRAWN = 16  # configurations to choose the measured one from
_CALIBRATED = (1, 4, 16, 64)
_SHARE_TRAINED = 0.5  # of all epochs, under a scheduler that stops trials early
_PROCESS_SECONDS = 2.0  # of a core, to start a trial's process


@dataclass
class _Job:
    """A trial on its way to its next report."""

    trial_id: str
    config: TrialConfig
    epoch: int
    done: asyncio.Future[dict[str, float]]
    posteriors: Tensor | None = None  # of the validation rows, for its report to start from
    member: Member | None = None


class _Aside(NamedTuple):
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
        self._aside: dict[str, _Aside] = {}
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
            model = aside.model.described(self._scaler, self._feature_names)
            write_checkpoint(folder, model, aside.state, aside.evaluation, self._data.validation)
            return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def _held(self, trial_id: str) -> _Aside:
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
        answered = []
        for job in list(self._jobs.values()):
            member = job.member
            if member is None or member not in population.members:
                continue
            reason = member.divergence()
            if reason is None and member.epoch < job.epoch:
                continue
            try:
                if reason is not None:
                    raise TrialDiverged(reason)
                (evaluation,) = await asyncio.to_thread(
                    evaluate, population, self._data, [member], start=job.posteriors
                )
            except TrialDiverged as error:
                if not job.done.done():
                    job.done.set_exception(error)
            else:
                (model,) = population.models([member])
                state = _copied(population, member)
                if follows_shortly(next_report(self._due, member.epoch), member.epoch):
                    state[POSTERIORS] = evaluation.posteriors.cpu()
                self._aside[job.trial_id] = _Aside(state, model, evaluation)
                if not job.done.done():
                    job.done.set_result(evaluation.scores)
            self._jobs.pop(job.trial_id, None)
            answered.append(member)
        self._remove(population, answered)

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


def _copied(population: Population, member: Member) -> State:
    """Returns a member's state, in memory of its own on the host."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in population.state(member).items()}


def calibrate(search: SearchFile, train: Part, device: str, *, samples: int, cores: int) -> int:
    """Measures an epoch of packs of growing size and returns the size with which the search should end first.

    A configuration drawn from the space stands for all, one that takes batches if there is any. What a larger pack
    saves is held against what it costs: the processes of its thin trials, and on a CPU the core that they share.
    """
    drawn = [search.trial_config(sample) for sample in draw_configurations(search, _DRAWN)]
    solved = [Architecture.of(config.model, train.x.shape[1]).exact for config in drawn]
    config = drawn[solved.index(False) if False in solved else 0]
    epochs = samples * config.train.epochs * _SHARE_TRAINED
    costs, told = {}, []
    for p in _CALIBRATED:
        if p > min(samples, 4 if device == "cpu" else samples):  # what a CPU gains shows at once
            break
        population = Population([config] * p, train, device)
        population.train_epoch()
        start = time.perf_counter()
        population.train_epoch()
        seconds = (time.perf_counter() - start) / p
        told.append(f"{p} at once {1e3 * seconds:.1f} ms")
        workers = 1 if device != "cpu" else cores if p == 1 else max(1, cores - 1)
        processes = workers if p == 1 else workers * (p + 1)
        costs[p] = epochs * seconds / workers + processes * _PROCESS_SECONDS / cores
    chosen = min(costs, key=lambda p: costs[p])
    logger.info("calibration on %s, an epoch of one configuration: %s; search.pack %d", device, ", ".join(told), chosen)
    return chosen
