"""Checks that check: conditions, points to try first, values no machine can train with, and where a key belongs."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.config.test_search_file import TREE, problems_of
from tests.conftest import trial_config
from vadtune.cli import main
from vadtune.config import load_recorded_search, load_search, parse_search
from vadtune.config.existence import RULES
from vadtune.core.errors import ConfigError
from vadtune.core.schema import as_number


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("{posterior: fixd}", "names a value that cannot be: model.posterior: unknown posterior 'fixd': did you mean"),
        ("{posterior: [learned, fixd]}", "names a value that cannot be: model.posterior: unknown posterior 'fixd'"),
        ("{layers: '1'}", "on model.layers takes a number or a comparison such as '>0', got the text '1'"),
        ("{layers: ['1', '2']}", "on model.layers takes a number or a comparison such as '>0', got the text '1'"),
        ("{layers: '=>1'}", "on model.layers takes a number or a comparison such as '>0', got the text '=>1'"),
        ("{layers: true}", "names a value that cannot be: model.layers: takes a number, got True"),
        ("{layers: 1.5}", "names a value that cannot be: model.layers: must be a valid integer, got 1.5"),
        ("{layers: -1}", "names a value that cannot be: model.layers: must be greater than or equal to 0, got -1"),
        ("{layers: '==many'}", "takes a number or a comparison such as '>0', got the text 'many'"),
        ("{skip: 'true'}", "names a value that cannot be: model.skip: must be a valid boolean, got 'true'"),
        ("{skip: 1}", "names a value that cannot be: model.skip: must be a valid boolean, got 1"),
        ("{noise: '>0'}", "compares model.noise, which is no number; name values, such as fixed"),
        ("{posterior: '!=fixd'}", "names a value that cannot be: model.posterior: unknown posterior 'fixd'"),
        ("{layers: []}", "a condition needs at least one value of model.layers, got an empty list"),
    ],
)
def test_a_condition_that_never_holds_by_mistake_is_told(condition: str, message: str, tmp_path: Path) -> None:
    problems = problems_of(f"model.activation={{choice: [relu, tanh], when: {condition}}}", tmp_path=tmp_path)
    assert any(message in problem for problem in problems), problems
    assert all(problem.startswith("model.activation: ") for problem in problems)


@pytest.mark.parametrize(
    "condition",
    ["{posterior: fixed}", "{layers: [1, 2]}", "{layers: '>=1'}", "{skip: true}", "{model.dropout: '<0.5'}"],
)
def test_a_condition_on_values_that_can_be_is_accepted(condition: str) -> None:
    tree = copy.deepcopy(TREE)
    tree["model"]["activation"] = {"choice": ["relu", "tanh"], "when": yaml.safe_load(condition)}
    assert "model.activation" in parse_search(tree).domains


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"model.layers": 0, "model.hidden": 4}, "search.initial.0.model.hidden: does not exist with the other values"),
        ({"model.posterior": "learned", "model.log_var": -2}, "search.initial.0.model.log_var: does not exist"),
        ({"model.layers": True}, "search.initial.0.model.layers: must lie in its domain, got True"),
        ({"model.hidden": 4.5}, "search.initial.0.model.hidden: must lie in its domain, got 4.5"),
    ],
)
def test_a_point_to_try_first_holds_what_exists_there(point: dict[str, Any], message: str, tmp_path: Path) -> None:
    tree = TREE | {"search": {"samples": 4, "initial": [point]}}
    (problem,) = problems_of(tree=tree, tmp_path=tmp_path)
    assert problem.startswith(message)


def test_a_point_may_leave_to_the_sampler_what_decides() -> None:
    points = [{"model.hidden": 4}, {"model.log_var": -2}, {"model.layers": 1, "model.hidden": 8}]
    assert parse_search(TREE | {"search": {"samples": 4, "initial": points}}).search.initial == points


def test_an_override_removes_what_does_not_exist_with_it(tmp_path: Path) -> None:
    points = [{"model.layers": 1, "model.hidden": 4, "train.kl_weight": 0.1}]
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(TREE | {"search": {"samples": 4, "initial": points}}))
    search = load_search(tmp_path / "search.yaml", ["model.layers=0"])
    assert search.search.initial == search.tree["search"]["initial"] == [{"train.kl_weight": 0.1}]
    for name in ("digits", "breast_cancer"):
        shipped = Path(__file__).parents[2] / "search_spaces" / f"{name}.yaml"
        for override in ("model.layers=0", "model.layers=1", "model.posterior=fixed", "model.family=vae"):
            assert load_search(shipped, [override]).domains


def test_a_grid_without_conditions_holds_no_configuration_twice() -> None:
    tree = copy.deepcopy(TREE)
    tree["model"] = {
        "hidden": {"choice": [4, 8]},  # before what decides, and without a condition
        "skip": {"choice": [False, True]},
        "layers": {"int": [0, 1]},
        "posterior": {"choice": ["learned", "fixed"]},
        "log_var": {"choice": [-4, -2]},
    }
    tree["train"] = {"epochs": 9, "net_lr": {"choice": [0.01, 0.001]}}
    tree["search"] = {"sampler": "grid"}
    search = parse_search(tree)
    configs = [search.trial_config(point).to_yaml() for point in search.grid()]
    assert len(set(configs)) == len(configs) == (1 + 2 * 2) + 2 * 2 * 2 + 2 * 2 * 2 * 2
    for point in search.grid():
        flat = search.trial_config(point).flat()
        assert all(key in flat for key in point), "the sampler draws what the configuration has"


@pytest.mark.parametrize(
    "model", [{"layers": 0}, {"layers": 0, "posterior": "fixed"}, {"family": "vae"}, {"family": "vae", "layers": 0}, {}]
)
def test_a_configuration_is_written_by_the_rules_of_existence(model: dict[str, Any]) -> None:
    config = trial_config(model=model)
    search = parse_search(config.to_dict())
    assert {key for key in RULES if key in config.flat()} == {key for key in RULES if search.active({}, key)}


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=1e30",
        "train.epochs=1000000000000000000000000000000",
        "model.latent=100000000000000000000",
        "model.latent=1e20",
        "model.latent=\uff11\uff12",
        "model.latent='\uff11\uff12'",
        "model.latent='1_000'",
        "train.kl_weight='nan'",
        "train.kl_weight=.inf",
        "infer.steps=1000000000000000",
        "search.samples=1000000000000",
        "search.time_budget=\uff13\uff10m",
        f"search.time_budget={'9' * 400}d",
        "search.pack=100000000000",
        "model.latent={int: [1, 100000000000000000000]}",
        f"model.latent={{int: [1, {'9' * 400}]}}",
        "train.net_lr={uniform: [-1.0e+308, 1.0e+308]}",
        "train.net_lr={quniform: [0.1, 1, 1.0e-12]}",
    ],
)
def test_values_no_machine_can_train_with_are_refused(override: str, tmp_path: Path) -> None:
    (problem, *_) = problems_of(override, tmp_path=tmp_path)
    assert problem.startswith(f"{override.partition('=')[0]}: ")
    assert len(problem) < 700


@pytest.mark.parametrize("text", ["\uff11\uff12", "1_000", "inf", "nan", "\u0663", "0x10", "", "1 2", "--1"])
def test_a_text_that_is_no_plain_number_stays_a_text(text: str) -> None:
    assert as_number(text) == text


@pytest.mark.parametrize(
    "model",
    [
        {"latent": {"int": [1, 60000]}, "hidden": {"int": [1, 60000]}},
        {"latent": {"quniform": [1, 60000, 1]}, "hidden": {"int": [1, 60000]}},
        {"dropout": {"quniform": [0, 0.9, 1e-9]}},
    ],
)
def test_a_grid_of_a_billion_points_is_refused_at_once(model: dict[str, Any]) -> None:
    tree = {**copy.deepcopy(TREE), "model": model, "train": {"epochs": 9}, "search": {"sampler": "grid"}}
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"a grid has at most 100,000 points, got .*; use fewer values"):
        parse_search(tree)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("samples=3", "search.samples"),
        ("sampels=3", "search.samples"),
        ("latent=3", "model.latent"),
        ("epochs=3", "train.epochs"),
        ("model.epochs=3", "train.epochs"),
        ("model.net_lr=0.1", "train.net_lr"),
        ("seed=3", "train.seed or search.seed or data.missing.seed"),
        ("ratio=0.5", "data.missing.ratio"),
    ],
)
def test_an_unknown_key_names_the_place_it_belongs_to(override: str, place: str, tmp_path: Path) -> None:
    (problem,) = problems_of(override, tmp_path=tmp_path)
    key = override.partition("=")[0]
    assert problem == f"{key}: unknown key '{key.rpartition('.')[2]}': did you mean {place}?"


def test_what_init_writes_bears_fewer_epochs(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b,c\n" + "".join(f"{i},{i * i % 7},{i % 5}\n" for i in range(60)))
    for source in (str(tmp_path / "table.csv"), "digits", "breast_cancer"):
        out = tmp_path / f"{Path(source).stem}.yaml"
        assert main(["init", source, "--out", str(out)]) == 0
        for epochs in (20, 1):
            search = load_search(out, [f"train.epochs={epochs}"])
            assert 1 <= search.search.grace(epochs) <= epochs


def test_a_recorded_search_of_an_earlier_version_loses_what_its_initial_points_may_not_set(tmp_path: Path) -> None:
    """Version 0.1.0 did not check it; the user's own file is checked."""
    tree = {
        "name": "old",
        "data": {"source": "iris"},
        "model": {"layers": {"int": [0, 1]}, "hidden": {"choice": [4, 8]}},
        "search": {"initial": [{"model.layers": 0, "model.hidden": 4}]},
    }
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"initial.0.model.hidden: does not exist with the other values there"):
        load_search(path)
    assert load_recorded_search(path).search.initial == [{"model.layers": 0}]
