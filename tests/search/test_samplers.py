"""Optuna's side of a search, without Ray: what is proposed, and what Optuna is told."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.config.test_search_file import TREE
from vadtune.config import SearchFile, parse_search
from vadtune.config import sections as config_module
from vadtune.config.domains import DOMAINS, parse_domain
from vadtune.search.algorithms.samplers import SAMPLERS, Searcher, first_points, sample_count
from vadtune.search.algorithms.space import _suggest

METRIC = "val_missing_rmse"


def search_file(**search: Any) -> SearchFile:
    tree = copy.deepcopy(TREE)
    tree["search"] |= search
    if search.get("sampler") == "grid":
        tree["train"]["kl_weight"] = {"grid": [0.1, 1.0]}
        del tree["model"]["log_var"]
    if search.get("sampler") == "cmaes":
        tree["model"] = {"latent": {"logint": [2, 4]}}
    return parse_search(tree)


def test_the_names_a_file_may_use_are_those_of_the_registries() -> None:
    assert set(config_module.SAMPLERS) == set(SAMPLERS)


@pytest.mark.parametrize("kind", DOMAINS)
def test_optuna_draws_every_kind_of_domain_from_its_values(kind: str) -> None:
    domain = parse_domain({kind: [1, 9, 2] if kind == "quniform" else [1, 9]}, "model")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [_suggest(study.ask(), "x", domain) for _ in range(40)]
    assert all(domain.contains(value) for value in drawn)
    assert len(set(drawn)) > 1
    assert set(drawn) == set(domain.finite_values() or drawn)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_existing_parameters_from_their_domains(sampler: str) -> None:
    search = search_file(sampler=sampler, samples=12)
    searcher = Searcher(search)
    for index in range(sample_count(search)):
        sample = searcher.suggest(f"t{index}")
        if sample == Searcher.FINISHED:
            assert index == 3, "cmaes has three configurations here"
            break
        assert isinstance(sample, dict)
        for key, domain in search.domains.items():
            assert (key in sample) == search.active(sample, key)
            assert key not in sample or domain.contains(sample[key])
        search.trial_config(sample)
        searcher.on_trial_complete(f"t{index}", {METRIC: 0.1 * index, "epoch": search.epochs})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_same_proposals(sampler: str) -> None:
    def proposals(seed: int) -> list[Any]:
        search = search_file(sampler=sampler, samples=8, seed=seed)
        searcher = Searcher(search)
        found = []
        for index in range(sample_count(search)):
            found.append(searcher.suggest(f"t{index}"))
            searcher.on_trial_complete(f"t{index}", {METRIC: float(index), "epoch": search.epochs})
        return found

    assert proposals(3) == proposals(3)
    assert proposals(3) != proposals(4)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_no_configuration_is_proposed_twice_and_a_space_that_is_tried_out_ends_the_search(sampler: str) -> None:
    model = {
        "latent": {"int": [1, 3]},
        "layers": {"int": [0, 1]},
        "hidden": {"choice": [4, 8], "when": {"layers": ">0"}},
    }
    search = parse_search(
        {"name": "few", "data": {"source": "iris"}, "model": model, "search": {"sampler": sampler, "samples": 40}}
    )
    searcher, proposed = Searcher(search), []
    for index in range(40):
        sample = searcher.suggest(f"t{index}")
        if sample == Searcher.FINISHED:
            break
        proposed.append(sample)
        running = index % 3 == 0
        if not running:
            searcher.on_trial_complete(
                f"t{index}", {METRIC: float(index), "epoch": 1 if index % 3 == 1 else search.epochs}
            )
    assert len(proposed) == len({repr(sample) for sample in proposed}) == 3 + 3 * 2


def test_a_configuration_drawn_again_is_told_as_it_ended_before() -> None:
    point = {"model.latent": 2}
    search = parse_search(
        {
            "name": "again",
            "data": {"source": "iris"},
            "model": {"latent": {"int": [1, 9]}},
            "search": {"initial": [point, point, point]},
        }
    )
    searcher = Searcher(search)
    assert searcher.suggest("a") == point
    other = searcher.suggest("b")
    assert other != point, "the two other points were told as failed while the first one ran"
    states = [trial.state for trial in searcher.study.trials]
    assert states[1:3] == [TrialState.FAIL, TrialState.FAIL]
    searcher.on_trial_complete("a", {METRIC: 0.25, "epoch": search.epochs})
    searcher.study.enqueue_trial(point)
    assert searcher.suggest("c") not in (point, other)
    again = [trial for trial in searcher.study.trials if trial.params == point][-1]
    assert (again.state, again.value) == (TrialState.COMPLETE, 0.25)


def test_a_grid_is_tried_whole_and_each_point_once() -> None:
    search = search_file(sampler="grid", samples=None)
    searcher = Searcher(search)
    tried = [searcher.suggest(f"t{index}") for index in range(sample_count(search))]
    grid = search.grid()
    assert len(tried) == len(grid) == 20
    assert sorted(map(repr, map(sorted, (t.items() for t in tried if t)))) == sorted(
        map(repr, map(sorted, (point.items() for point in grid)))
    )
    assert sample_count(search_file(sampler="grid", samples=5)) == 5


def test_initial_points_come_first() -> None:
    point = {"model.layers": 0, "model.posterior": "learned", "train.kl_weight": 0.5}
    search = search_file(initial=[point])
    assert first_points(search) == [point]
    assert Searcher(search).suggest("t0") == point


@pytest.mark.parametrize(
    ("reports", "complete", "state", "value"),
    [
        pytest.param([(3, 0.5)], {"result": {METRIC: 0.4, "epoch": 9}}, TrialState.COMPLETE, 0.4, id="completed"),
        pytest.param([(1, 0.5)], {"result": {METRIC: 0.45, "epoch": 3}}, TrialState.PRUNED, 0.45, id="stopped"),
        pytest.param([(1, 0.5)], {"error": True}, TrialState.FAIL, None, id="failed after a report"),
        pytest.param([], {"error": True}, TrialState.FAIL, None, id="failed before"),
        pytest.param([], {}, TrialState.PRUNED, None, id="stopped before its first report"),
    ],
)
def test_optuna_is_told_how_a_trial_really_ended(
    reports: list[tuple[int, float]], complete: dict[str, Any], state: TrialState, value: float | None
) -> None:
    searcher = Searcher(search_file())
    searcher.suggest("t0")
    for epoch, score in reports:
        searcher.on_trial_result("t0", {METRIC: score, "epoch": epoch})
    searcher.on_trial_complete("t0", **complete)
    searcher.on_trial_complete("t0", **complete)  # Tune may say it twice
    (trial,) = searcher.study.trials
    assert (trial.state, trial.value) == (state, value)
    expected = dict(reports)
    if state == TrialState.PRUNED and complete:
        expected[3] = 0.45
    assert trial.intermediate_values == expected


def test_a_restored_searcher_goes_on_with_its_history(tmp_path: Any) -> None:
    search = search_file()
    searcher = Searcher(search)
    for index in range(3):
        searcher.suggest(f"t{index}")
        searcher.on_trial_complete(f"t{index}", {METRIC: 0.1, "epoch": 9})
    searcher.suggest("t3")
    searcher.save(str(tmp_path / "state.pkl"))
    restored = Searcher(search)
    restored.restore(str(tmp_path / "state.pkl"))
    assert [trial.params for trial in restored.study.trials] == [trial.params for trial in searcher.study.trials]
    restored.on_trial_complete("t3", {METRIC: 0.2, "epoch": 9})
    assert restored.study.trials[3].state == TrialState.COMPLETE
    assert restored.suggest("t4") == searcher.suggest("t4")
    assert pickle.loads(pickle.dumps(searcher)).study.trials[0].value == 0.1


def test_building_a_searcher_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sampler in SAMPLERS:
            Searcher(search_file(sampler=sampler))
