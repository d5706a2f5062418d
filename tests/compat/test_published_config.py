from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vadtune.cli import main
from vadtune.compat.published_config import import_settings, read_settings
from vadtune.config import TrialConfig, load_trial
from vadtune.core.errors import ConfigError
from vadtune.data import load_dataset
from vadtune.training.population import Population

# A configuration as the published code's generator writes it, but for the start of test rows.
SETTINGS: dict[str, Any] = {
    "n_latent_params": 25,
    "n_hidden": 50,
    "n_hidden_layers": 2,
    "use_adam": True,
    "dropout": None,
    "layer_norm": False,
    "latent_param_lr": 0.001,
    "net_lr": 0.0001,
    "test_latent_param_lr": 0.01,
    "masked": 0.3,
    "latent_param_init": "pca",
    "test_latent_param_init": "zeros",
    "activation_fn": "relu",
    "config_folder": "configs",
    "config_num": 0,
}


def imported(**changes: Any) -> TrialConfig:
    return import_settings({**SETTINGS, **changes}, name="config_0", source="digits").config


def test_a_configuration_comes_over_by_its_flags_defaults() -> None:
    assert imported().to_dict() == TrialConfig.model_validate(
        {
            "name": "config_0",
            "data": {"source": "digits", "missing": {"ratio": 0.3}},
            "model": {"latent": 25, "hidden": 50, "layers": 2, "activation": "relu", "posterior": "none"},
            "train": {
                **{"epochs": 50, "batch_size": 32, "kl_weight": 0.0, "net_lr": 0.0001},
                "latent_lr": 0.001 * 40**0.5,  # 1,257 train rows in batches of 32
                **{"weight_decay": 0.0, "latent_init": "pca", "schedule": "constant"},
                "optimiser": "adam",
            },
            "infer": {"steps": 50, "lr": 0.01, "start": "zeros"},
        }
    ).to_dict()  # fmt: skip


@pytest.mark.parametrize(("model", "posterior"), [("ae", "none"), ("vae", "fixed"), ("vae_free", "learned")])
def test_models_are_posteriors(model: str, posterior: str) -> None:
    config = imported(model=model)
    assert config.model.family == "vad"
    assert config.model.posterior == posterior
    assert config.train.kl_weight == 0, "without --kl the prior is dropped"
    if posterior == "fixed":
        assert config.model.log_var == -14
        assert imported(model=model, log_var=-3.5).model.log_var == -3.5


def test_ratio_kl_is_converted_by_the_observed_cells_of_a_row() -> None:
    assert imported(model="vae", kl=True).train.kl_weight == pytest.approx(64 * 0.7)
    assert imported(model="vae_free", kl=True, ratio_kl=0.001, masked=0.5).train.kl_weight == pytest.approx(0.032)
    iris = import_settings({**SETTINGS, "model": "vae", "kl": True, "ratio_kl": 2.0}, name="x", source="iris")
    assert iris.config.train.kl_weight == pytest.approx(2 * 4 * 0.7)
    assert "kl_weight = ratio_kl 2 x 4 columns x 0.7 observed" in iris.notes


def test_ignored_settings_are_listed_in_the_notes() -> None:
    notes = import_settings({**SETTINGS, "warp": 9}, name="x", source="digits").notes
    assert notes == [
        "config_folder: no effect here, left out",
        "config_num: no effect here, left out",
        "warp: unknown, 9 was left out",
        "latent_lr = latent_param_lr 0.001 x root of 40 minibatches: there each moves all rows, by their momentum",
    ]


def test_overrides_have_the_last_word() -> None:
    config = import_settings(
        {**SETTINGS, "model": "vae", "kl": True}, name="x", source="digits", overrides=["train.kl_weight=0.5", "name=y"]
    ).config
    assert config.train.kl_weight == 0.5
    assert config.name == "y"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"use_adam": False}, ("train.optimiser", "sgd")),
        ({"use_adam": False}, ("train.latent_lr", 0.001)),
        ({"layer_norm": True}, ("model.layer_norm", True)),
        ({"dropout": 0.2}, ("model.dropout", 0.2)),
        ({"reduce": True}, ("train.schedule", "plateau")),
        ({"activation_fn": "linear"}, ("model.activation", "linear")),
        ({"test_latent_param_init": "train"}, ("infer.start", "train")),
        ({"test_latent_param_init": "normal"}, ("infer.start", "normal")),
    ],
)
def test_an_option_comes_over(setting: dict[str, Any], expected: tuple[str, object]) -> None:
    assert imported(**setting).flat()[expected[0]] == expected[1]


def test_train_and_test_may_miss_different_shares() -> None:
    def with_ratio(masked: float | None) -> TrialConfig:
        return import_settings({**SETTINGS, "masked": masked}, name="x", source="digits", ratio=0.5).config

    assert with_ratio(None).flat()["data.train_missing.ratio"] == 0
    assert with_ratio(0.3).flat()["data.train_missing.ratio"] == 0.3
    assert with_ratio(0.5).data.missing.ratio == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gan"}, "--model: unknown model 'gan': valid: ae, vae, vae_free"),
        ({"masked": None}, "--ratio: is needed, for masked is null"),
        ({"masked": "half"}, "masked: takes a share of cells from 0 to below 1 or null, got 'half'"),
        ({"masked": 1.0}, "masked: takes a share of cells"),
        ({"model": "vae", "kl": True, "ratio_kl": "much"}, "--ratio_kl: takes a number, got 'much'"),
        ({"n_hidden": "wide"}, "model.hidden: must be a valid integer, got 'wide'"),
        ({"latent_param_init": "ones"}, "train.latent_init: unknown latent_init 'ones'"),
        ({"net_lr": -1}, "train.net_lr: must be greater than 0, got -1"),
    ],
)
def test_settings_that_break_a_rule_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        imported(**changes)
    assert raised.value.problems[0].startswith(message)
    assert len(raised.value.problems) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "needs an object of settings, got list"),
        ("{", "not valid JSON"),
        ("{}", "lacks n_latent_params, n_hidden, n_hidden_layers, net_lr, latent_param_lr"),
        ("[" * 100_000, "not valid JSON"),
        ("\ud800", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_configuration_is_reported(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config_0.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError) as raised:
        read_settings(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_writes_what_train_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "config_7.json").write_text(json.dumps({**SETTINGS, "warp": 1}))
    command = ["import-config", str(tmp_path / "config_7.json"), "--source", "iris", "--model", "vae", "--kl"]
    command += ["--ratio_kl", "0.1", "--n_train_epochs", "2", "--batch-size", "16"]
    assert main(command) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["name"] == "config_7"
    assert printed["train"]["kl_weight"] == pytest.approx(0.1 * 4 * 0.7)
    assert "warp: unknown, 1 was left out" in caplog.text
    out = tmp_path / "new/vad.yaml"
    assert main([*command, "--out", str(out), "--name", "seed"]) == 0
    config = load_trial(out)
    assert (config.name, config.train.epochs, config.train.batch_size) == ("seed", 2, 16)
    assert capsys.readouterr().out == ""
    assert main(["train", str(out)]) == 0


def test_the_arguments_a_run_left_behind_are_read_too(tmp_path: Path) -> None:
    left = {**SETTINGS, "action": "train", "dataset": "digits", "model": "vae", "kl": True, "log_var": None}
    left |= {"n_train_epochs": 9, "device": None, "cuda": False}
    (tmp_path / "args.json").write_text(json.dumps(left))
    config = import_settings(read_settings(tmp_path / "args.json"), name="x").config
    assert (config.data.source, config.train.epochs, config.model.log_var) == ("digits", 9, -14)
    assert config.train.kl_weight == pytest.approx(64 * 0.7)


SEED_DEFAULTS = {
    **{"n_latent_params": 50, "n_hidden": 100, "n_hidden_layers": 2, "use_adam": True, "activation_fn": "relu"},
    **{"net_lr": 1e-3, "latent_param_lr": 1e-3, "test_latent_param_lr": 1e-3},
    **{"latent_param_init": "normal", "test_latent_param_init": "zeros"},
    **{"model": "vae", "n_train_epochs": 500, "n_test_epochs": 500},
}


@pytest.mark.parametrize(
    ("ratio", "reached"),
    [pytest.param(0.1, 0.180, marks=pytest.mark.slow), (0.5, 0.238), pytest.param(0.9, 0.317, marks=pytest.mark.slow)],
)
def test_the_published_code_s_defaults_do_here_what_they_do_there(ratio: float, reached: float) -> None:
    """A log variance of -14, no KL and Adam at 1e-3, against what a plain loop of that code reached on digits."""
    config = import_settings({**SEED_DEFAULTS, "masked": ratio}, name="seed", source="digits").config
    assert (config.model.log_var, config.train.kl_weight) == (-14, 0)
    dataset = load_dataset(config.data)
    population = Population([config], dataset.train)
    population.train_until(config.train.epochs)
    (model,) = population.models()
    given = dataset.test_part(ratio, 0)
    error = (model.reconstruct(given) - dataset.test_truth) ** 2
    assert np.sqrt(error[~given.mask].mean()) == pytest.approx(reached, abs=0.03)
    assert error[given.mask].mean() < 0.008, "next to what is reached over missing cells, observed ones are copied"
    assert population.members[0].metrics["train_reconstruction"] < 0.001
