from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadtune.config import parse_search
from vadtune.search.algorithms.logical_order import LogicalOrder
from vadtune.search.algorithms.trial_clock import trial_clock

EPOCHS = (1, 3, 9)


class Trial:
    """As much of a Tune trial as the order looks at."""

    def __init__(self, number: int, config: dict[str, Any]) -> None:
        self.trial_id, self.config, self.status = f"t{number}", config, "RUNNING"
        self.last_result: dict[str, Any] = {}
        self.epoch = 0


class Machine:
    """Runs trials that take as long as chance says, and decides as a sampler and a scheduler with a memory would."""

    def __init__(self, concurrency: int, total: int, wall: random.Random, deaths: float = 0.0) -> None:
        self.order = LogicalOrder(concurrency, lambda config: {e: e * config["speed"] for e in EPOCHS})
        self.total, self.wall, self.deaths = total, wall, deaths
        self.trials: list[Trial] = []
        self.log: list[tuple[str, int]] = []  # what sampler and scheduler learn, in this order
        self.saving: list[Trial] = []

    def propose(self, count: int) -> None:
        for _ in range(min(count, self.total - len(self.trials))):
            known = len(self.log)  # the proposal depends on all that is known
            self.trials.append(Trial(len(self.trials), {"speed": 1 + (7 * known + len(self.trials)) % 5}))
            self.log.append((self.trials[-1].trial_id, 0))

    def count(self, trial: Trial, epoch: int) -> None:
        again = (trial.trial_id, epoch) in self.log
        if not again:
            self.log.append((trial.trial_id, epoch))
        trial.last_result = {"epoch": epoch, "done": epoch == EPOCHS[-1] or (not again and len(self.log) % 4 == 0)}
        trial.epoch = epoch
        if trial.last_result["done"]:
            self.saving.append(trial)  # ends once its checkpoint is written

    def run(self, steps: int = 10_000) -> list[tuple[str, int]]:
        self.order.proceed(self.trials, self.propose)
        for _ in range(steps):
            busy = [
                trial
                for trial in self.trials
                if trial.status == "RUNNING" and trial not in self.saving and not self.order.is_holding(trial.trial_id)
            ]
            if not busy and not self.saving:
                break
            trial = self.wall.choice([*busy, *self.saving])
            if trial in self.saving:
                self.saving.remove(trial)
                trial.status = "TERMINATED"
            else:
                if trial.epoch and self.wall.random() < self.deaths:  # its worker dies: it reports an epoch again
                    trial.epoch = max([0, *(epoch for epoch in EPOCHS if epoch < trial.epoch)])
                epoch = min(epoch for epoch in EPOCHS if epoch > trial.epoch)
                self.order.arrived(trial, epoch, lambda trial=trial, epoch=epoch: self.count(trial, epoch))
            self.order.proceed(self.trials, self.propose)
        assert len(self.trials) == self.total
        assert all(trial.status == "TERMINATED" for trial in self.trials)
        return self.log


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 10**6), st.sampled_from([0.0, 0.2]))
def test_what_sampler_and_scheduler_know_does_not_depend_on_who_is_first(
    concurrency: int, total: int, seed: int, deaths: float
) -> None:
    expected = Machine(concurrency, total, random.Random(0)).run()
    assert Machine(concurrency, total, random.Random(seed), deaths).run() == expected


def test_one_trial_at_a_time_never_waits() -> None:
    machine = Machine(1, 5, random.Random(0))
    assert [epoch for _, epoch in machine.run()][:2] == [0, 1]


def test_results_count_when_they_are_due_and_in_the_order_of_proposal_if_at_once() -> None:
    counted: list[str] = []
    trials = [Trial(0, {"speed": 2}), Trial(1, {"speed": 1}), Trial(2, {"speed": 1})]
    order = LogicalOrder(3, lambda config: {e: e * config["speed"] for e in EPOCHS})
    for index in (0, 2, 1):
        order.proceed(trials, lambda count: None)
        order.arrived(trials[index], 1, lambda index=index: counted.append(f"t{index}"))
        if index == 2:
            assert (counted, order.is_holding("t0"), order.is_holding("t1")) == ([], True, False)
    order.proceed(trials, lambda count: None)
    assert counted == ["t1", "t2", "t0"]


def test_a_failure_counts_when_the_next_report_would() -> None:
    trials, counted = [Trial(0, {"speed": 2}), Trial(1, {"speed": 1})], list[str]()
    order = LogicalOrder(2, lambda config: {e: e * config["speed"] for e in EPOCHS})
    order.proceed(trials, lambda count: None)

    def fail() -> None:
        counted.append("t0")
        trials[0].status = "ERROR"

    order.arrived(trials[0], None, fail)
    order.proceed(trials, lambda count: None)
    assert counted == []
    order.arrived(trials[1], 1, lambda: counted.append("t1"))
    order.proceed(trials, lambda count: None)
    assert counted == ["t1", "t0"]


def test_trials_that_were_ended_from_outside_hold_nothing_up() -> None:
    trials, counted = [Trial(0, {"speed": 1}), Trial(1, {"speed": 2})], list[str]()
    order = LogicalOrder(2, lambda config: {e: e * config["speed"] for e in EPOCHS})
    order.proceed(trials, lambda count: None)
    order.arrived(trials[1], 1, lambda: counted.append("t1"))
    trials[0].status = "TERMINATED"
    order.proceed(trials, lambda count: None)
    assert counted == ["t1"]


def test_a_trial_that_cannot_start_holds_the_others_up_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with more trials at once than there are GPUs."""
    trials, counted = [Trial(0, {"speed": 1}), Trial(1, {"speed": 2})], list[str]()
    trials[0].status = "PENDING"
    order = LogicalOrder(2, lambda config: {e: e * config["speed"] for e in EPOCHS})
    order.proceed(trials, lambda count: None)
    order.arrived(trials[1], 1, lambda: counted.append("t1"))
    order.proceed(trials, lambda count: None)
    assert counted == []
    monkeypatch.setattr("vadtune.search.algorithms.logical_order._PATIENCE", -1.0)
    order.proceed(trials, lambda count: None)
    assert counted == ["t1"]
    assert caplog.text.count("lower search.concurrency") == 1
    order.arrived(trials[1], 3, lambda: counted.append("t1 again"))
    order.proceed(trials, lambda count: None)
    assert counted == ["t1", "t1 again"], "from then on as they arrive"


def test_what_has_arrived_counts_when_the_budget_of_a_search_ends() -> None:
    trials, counted = [Trial(0, {"speed": 1}), Trial(1, {"speed": 2}), Trial(2, {"speed": 3})], list[str]()
    order = LogicalOrder(3, lambda config: {e: e * config["speed"] for e in EPOCHS})
    order.proceed(trials, lambda count: None)
    for trial in (trials[2], trials[1]):
        order.arrived(trial, 1, lambda trial=trial: counted.append(trial.trial_id))
    assert order.count_all()
    assert counted == ["t1", "t2"]
    assert not order.count_all()


def test_a_resume_continues_at_the_same_time_of_the_clock() -> None:
    def machine() -> Machine:
        return Machine(3, 12, random.Random(5))

    expected, before = machine().run(), machine()
    with pytest.raises(AssertionError):
        before.run(steps=17)
    after = machine()
    after.trials, after.log = before.trials, list(before.log)
    for trial in before.saving:
        trial.status = "TERMINATED"
    after.order.restore(before.order.state())
    assert after.run() == expected


def test_the_clock_follows_the_arithmetic() -> None:
    model = {"layers": {"choice": [0, 1]}, "hidden": {"choice": [16, 64]}}
    search = parse_search({"name": "clock", "data": {"source": "iris"}, "model": model})
    times = trial_clock(search, train_rows=1000, inferred_rows=400, columns=20)
    small, large = times({"model.layers": 1, "model.hidden": 16}), times({"model.layers": 1, "model.hidden": 64})
    assert list(small) == sorted(small)
    assert list(small.values()) == sorted(small.values())
    assert all(small[epoch] < large[epoch] for epoch in small)
    assert times({"model.layers": 0, "model.hidden": 16})[max(small)] < small[max(small)]
