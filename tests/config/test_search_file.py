from __future__ import annotations

import contextlib
import copy
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import trial_config
from vadtune.config import TrialConfig, flatten, load_search, load_trial, parse_search, unflatten
from vadtune.core.errors import ConfigError, VadtuneError

SEARCH_SPACES = sorted((Path(__file__).parent.parent.parent / "search_spaces").glob("*.yaml"))

TREE: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "iris", "missing": {"ratio": 0.3}},
    "model": {
        "hidden": {"choice": [4, 8], "when": {"layers": ">0"}},
        "layers": {"int": [0, 2]},
        "posterior": {"choice": ["learned", "fixed"]},
        "log_var": {"uniform": [-6, -1], "when": {"posterior": "fixed"}},
    },
    "train": {"epochs": 9, "kl_weight": {"loguniform": [0.01, 1]}},
    "search": {"samples": 4},
}


def problems_of(*overrides: str, tree: dict[str, Any] | None = None, tmp_path: Path) -> list[str]:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(tree or TREE))
    with pytest.raises(ConfigError) as raised:
        load_search(path, overrides)
    return raised.value.problems


@pytest.mark.parametrize("path", SEARCH_SPACES, ids=lambda path: path.stem)
def test_every_shipped_search_file_is_valid_and_says_how_to_run_it(path: Path) -> None:
    search = load_search(path)
    assert search.name == path.stem
    commands = [line for line in path.read_text().splitlines() if line.startswith("#     vadtune ")]
    assert any(path.stem in command.split() for command in commands)
    assert search.search.samples is not None or search.search.sampler == "grid"


def test_a_search_file_survives_its_own_yaml_and_pickle(tmp_path: Path) -> None:
    search = parse_search(copy.deepcopy(TREE))
    (tmp_path / "again.yaml").write_text(search.to_yaml())
    assert load_search(tmp_path / "again.yaml") == search
    assert pickle.loads(pickle.dumps(search)) == search


@pytest.mark.parametrize("path", SEARCH_SPACES, ids=lambda path: path.stem)
def test_a_search_file_is_pickled_as_its_plain_tree(path: Path) -> None:
    search = load_search(path)
    content = pickle.dumps(search)
    assert pickle.loads(content) == search
    names = {argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)}
    assert {name for name in names if name.startswith("vadtune")} == {"vadtune.config.search_file"}


def test_an_override_has_the_last_word_on_what_is_tried_first(tmp_path: Path) -> None:
    points = [{"model.layers": 0, "train.kl_weight": 0.1}, {"model.layers": 1}]
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(TREE | {"search": {"samples": 4, "initial": points}}))
    search = load_search(tmp_path / "search.yaml", ["model.layers=2"])
    assert search.search.initial == [{"train.kl_weight": 0.1}, {}]
    assert load_search(tmp_path / "search.yaml", ["train.epochs=18"]).search.initial == points
    part = load_search(tmp_path / "search.yaml", ["train.kl_weight.loguniform=[0.2, 0.3]"])
    assert part.search.initial == [{"model.layers": 0}, {"model.layers": 1}]
    section = load_search(tmp_path / "search.yaml", ["model={latent: 2, layers: 1}"])
    assert section.search.initial == [{"train.kl_weight": 0.1}, {}]


def test_conditions_look_back_only() -> None:
    search = parse_search(copy.deepcopy(TREE))
    keys = list(search.domains)
    assert keys.index("model.layers") < keys.index("model.hidden")
    assert not search.active({"model.layers": 0}, "model.hidden")
    assert search.active({"model.layers": 1}, "model.hidden")
    assert not search.active({"model.posterior": "learned"}, "model.log_var")


def test_a_parameter_whose_condition_is_inactive_is_inactive() -> None:
    tree = copy.deepcopy(TREE)
    tree["model"]["activation"] = {"choice": ["relu", "tanh"], "when": {"hidden": ">0"}}
    assert not parse_search(tree).active({"model.layers": 0}, "model.activation")


def test_a_condition_may_rest_on_a_fixed_value_or_a_default() -> None:
    tree = copy.deepcopy(TREE)
    del tree["model"]["layers"]  # its default is 1
    tree["model"]["posterior"] = "fixed"
    search = parse_search(tree)
    assert search.active({}, "model.hidden")
    assert search.active({}, "model.log_var")


def test_a_sample_makes_a_trial_configuration() -> None:
    search = parse_search(copy.deepcopy(TREE))
    config = search.trial_config({"model.layers": 2, "model.hidden": 8, "train.kl_weight": 0.5})
    assert (config.model.layers, config.model.hidden, config.train.kl_weight) == (2, 8, 0.5)
    assert config.train.epochs == 9
    with pytest.raises(ConfigError, match=r"model\.layers: must be greater than or equal to 0, got -1"):
        search.trial_config({"model.layers": -1})


def test_a_grid_has_every_combination_of_existing_parameters_once() -> None:
    tree = copy.deepcopy(TREE)
    del tree["model"]["log_var"], tree["train"]["kl_weight"]
    tree["search"] = {"sampler": "grid"}
    search = parse_search(tree)
    points = search.grid()
    assert len(points) == 2 * (1 + 2 + 2)  # posterior x (linear, or two depths of two widths)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    assert all(("model.hidden" in point) == (point["model.layers"] > 0) for point in points)
    assert search.search.samples is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("modle={latent: 3}", "modle: unknown key 'modle': did you mean 'model'?"),
        ("model.laten=3", "model.laten: unknown key 'laten': did you mean 'latent'?"),
        ("model.laten={int: [1, 2]}", "model.laten: unknown key 'laten': did you mean 'latent'?"),
        ("model.latent={choise: [1, 2]}", "model.latent: unknown domain 'choise': did you mean 'choice'?"),
        ("model.latent=many", "model.latent: must be a valid integer, got 'many'"),
        ("model.latent=2.5", "model.latent: must be a valid integer, got 2.5"),
        ("model.latent=true", "model.latent: takes a number, got True"),
        ("model=3", "model: takes a section with keys of its own, got 3"),
        ("model.family=gan", "model.family: unknown family 'gan'"),
        ("data.source=mnits", "data.source: unknown source 'mnits': did you mean 'mnist'?"),
        ("data.missing.mechanism=mcra", "data.missing.mechanism: unknown mechanism 'mcra': did you mean 'mcar'?"),
        ("data.missing.ratio=1.5", "data.missing.ratio: must be less than 1, got 1.5"),
        ("data.missing.ratio=-1", "data.missing.ratio: must be greater than or equal to 0, got -1"),
        ("data.missing.ratio=0", "data.missing: source 'iris' has no missing values, so the ratio must be greater"),
        ("data.missing=none", "data.missing: source 'iris' has no missing values, so the ratio must be greater"),
        (
            "data.missing.path=m.npy",
            "data.missing.path: is an option of file, not of mechanism 'mcar'; leave it out, got 'm.npy'",
        ),
        ("data.missing.mechanism=file", "data.missing: mechanism 'file' needs the `path` of a mask file"),
        ("data.train_missing={ration: 1}", "data.train_missing.ration: unknown key 'ration': did you mean 'ratio'?"),
        ("data.train_missing=some", "data.train_missing: takes a section with keys of its own, got 'some'"),
        ("data={source: file, path: x, colums: [a]}", "data.colums: unknown key 'colums': did you mean 'columns'?"),
        (
            "data.colums=[a]",
            "data.colums: unknown key 'colums': valid: holdout, missing, sample, source, train_missing",
        ),
        ("data.holdout={fold: 3}", "data.holdout.fold: unknown key 'fold': did you mean 'folds'?"),
        ("data.holdout=3", "data.holdout: takes a section with keys of its own, got 3"),
        ("data={missing: none}", "data.source: is required; add it to the file"),
        ("data=3", "data: takes a section with keys of its own, got 3"),
        ("search=3", "search: takes a section with keys of its own, got 3"),
        ("data.columns=[a]", "data.columns: is an option of file, not of source 'iris'; leave it out, got ['a']"),
        ("data.rows=20", "data.rows: is an option of synthetic, not of source 'iris'; leave it out, got 20"),
        ("data={source: file, path: ~nobody-of-this-name/x}", "data.path: starts with the home of a user who is not"),
        ("data.source=file", "data.path: is required by source 'file'; set data.path"),
        (
            "data={source: sfm, path: x, missing: {mechanism: file, path: m}}",
            "data.missing: source 'sfm' includes its masks; leave `path` out",
        ),
        (
            "data={source: mnist, path: x, data_dir: y}",
            "data.data_dir: is the folder of downloaded files, path that of HDF5",
        ),
        ("data.missing.ratio={uniform: [0.1, 0.9]}", "data.missing.ratio: takes a value, got a domain"),
        ("train.epochs={int: [1, 9]}", "train.epochs: takes a value, got a domain"),
        ("train.net_lr={loguniform: [1e-2, 1e-3]}", "train.net_lr: loguniform needs low < high, got [0.01, 0.001]"),
        ("train.net_lr={loguniform: [0, 1]}", "train.net_lr: loguniform needs low > 0, for logarithms, got [0, 1]"),
        ("train.net_lr={uniform: [-1, 1]}", "train.net_lr: must be greater than 0, got -1"),
        ("model.activation={choice: [relu, swish]}", "model.activation: unknown activation 'swish'"),
        ("model.hidden={choice: [], when: {layers: '>0'}}", "model.hidden: choice needs at least one value"),
        ("model.hidden.when={depth: '>0'}", "model.hidden: its condition names an unknown parameter 'model.depth'"),
        ("search.metric=val_rmse", "search.metric: is not reported: unknown metric 'val_rmse': did you mean"),
        ("search.metric=train_loss", "search.metric: a search selects on held-out cells only"),
        ("search.sampler=cma-es", "search.sampler: unknown sampler 'cma-es': did you mean 'cmaes'?"),
        ("search.sampler=cmaes", "model.hidden: the sampler 'cmaes' takes unconditional numbers only, got a condition"),
        ("search.sampler=grid", "train.kl_weight: the sampler 'grid' needs finite domains, got loguniform"),
        ("model.latent={grid: [1, 2]}", "model.latent: a grid needs search.sampler grid, got 'tpe'; use choice"),
        ("search.scheduler=pbt", "search.scheduler: unknown scheduler 'pbt'"),
        ("search.grace_epochs=10", "search.grace_epochs: must be at most train.epochs (9), got 10"),
        (
            "search.time_budget=soon",
            "search.time_budget: takes a duration above 0 such as 90s, 30m, 2h or 1d, got 'soon'",
        ),
        ("search.gpu_hours=2", "search.gpu_hours: is a budget for GPUs, and trials use none; set search.gpus_per_tri"),
        ("search.gpu_hours=0", "search.gpu_hours: must be greater than 0, got 0"),
        ("search.gpu_hours=12h", "search.gpu_hours: must be a valid number, got '12h'"),
        ("search.report=often", "search.report: takes 'rungs' or a number of epochs from 1, got 'often'"),
        ("search.initial=[{model.depth: 1}]", "search.initial.0.model.depth: unknown searched parameter 'model.depth'"),
        ("search.initial=[{model.layers: 7}]", "search.initial.0.model.layers: must lie in its domain, got 7"),
        ("name=../up", "name: takes letters, digits, '.', '_' and '-', starting with a letter or digit, got '../up'"),
        ("data={source: iris, ratio: 0.5}", "data.ratio: unknown key 'ratio'"),
        ("no equals sign", "an override has the form key.path=value, got 'no equals sign'"),
        ("model.latent=[1", "model.latent: the value must be YAML, got '[1'"),
    ],
)
def test_each_problem_is_reported_with_its_path(override: str, expected: str, tmp_path: Path) -> None:
    problems = problems_of(override, tmp_path=tmp_path)
    assert any(problem.startswith(expected) for problem in problems), problems


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    problems = problems_of(
        "data.missing.ratio=2",
        "model.laten=1",
        "train.net_lr={loguniform: [0, 1]}",
        "search.metric=x",
        tmp_path=tmp_path,
    )
    assert len(problems) == 4


def test_conditions_in_a_circle_are_refused(tmp_path: Path) -> None:
    tree = copy.deepcopy(TREE)
    tree["model"]["layers"] = {"int": [0, 2], "when": {"hidden": ">1"}}
    (problem,) = problems_of(tree=tree, tmp_path=tmp_path)
    assert "their conditions form a cycle" in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nname: b\n", "key 'name' twice (line 1)"),
        ("name: [", "not valid YAML"),
        ("- a list\n", "needs sections (name, data, model, ...), got list"),
        ("", "needs sections"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("name: \x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_search_file_is_one_clear_error(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_search(path)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read \(No such file or directory\)"):
        load_search(tmp_path / "nowhere.yaml")


def test_a_trial_configuration_takes_no_domains(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(TREE))
    with pytest.raises(ConfigError, match="one value each is needed, got domains for model"):
        load_trial(path)
    fixed = ["model.hidden=4", "model.layers=1", "model.posterior=learned", "model.log_var=-2", "train.kl_weight=0.1"]
    assert load_trial(path, fixed).model.hidden == 4


@pytest.mark.parametrize("model", [{"layers": 0}, {"posterior": "fixed"}, {"family": "vae"}, {}])
def test_a_trial_configuration_holds_what_exists_and_comes_back(model: dict[str, Any], tmp_path: Path) -> None:
    config = trial_config(model=model)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = load_trial(tmp_path / "config.yaml")
    assert again.flat() == config.flat()
    flat = config.flat()
    assert ("model.hidden" in flat) == (config.model.layers > 0)
    assert ("model.log_var" in flat) == (config.model.posterior == "fixed")
    assert ("train.latent_lr" in flat) == (config.model.family == "vad" and config.model.layers > 0)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1d", 86400), (20, 20)])
def test_time_budgets_are_durations(text: object, seconds: float) -> None:
    tree = copy.deepcopy(TREE)
    tree["search"]["time_budget"] = text
    assert parse_search(tree).search.time_budget_s == seconds


def test_flatten_and_unflatten_are_inverse() -> None:
    nested = trial_config().model_dump()
    assert unflatten(flatten(nested)) == nested
    assert TrialConfig.model_validate(unflatten(flatten(nested))) == trial_config()


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["name", "data", "model", "train", "infer", "search", "x"])


@given(
    st.dictionaries(KEYS, YAML_VALUES, max_size=5),
    st.sampled_from(
        [
            *flatten(trial_config().model_dump()),
            *("data.train_missing", "data.train_missing.ratio", "data.missing.path", "data.path", "data.columns"),
            *("data.na_values", "data.image", "data.rows", "data.data_dir"),
        ]
    ),
    YAML_VALUES,
)
def test_no_file_makes_anything_but_our_own_errors(tree: dict[str, Any], key: str, value: Any) -> None:
    for candidate in (tree, unflatten({**flatten(copy.deepcopy(TREE)), key: value})):
        with contextlib.suppress(VadtuneError):
            parse_search(candidate)
